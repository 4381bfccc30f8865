import { existsSync } from "node:fs";
import { Command, CommanderError, type Option } from "commander";
import { DaemonError } from "#agent/daemon/daemon-error.ts";
import { environmentOf, parseSwitch, SETTING_NAMES, SETTINGS } from "#agent/daemon/settings.ts";
import { messageOf } from "#base/errors.ts";
import { EXIT, exitCodeOf, Interrupted } from "./exit-codes.ts";
import { clean, paintFor, say } from "./terminal.ts";
import { perchVersion } from "./version.ts";

interface CommandEntry {
  readonly name: string;
  readonly summary: string;
  readonly load: () => Promise<Command>;
  /** Not for people: absent from help and completion. */
  readonly hidden?: boolean;
}

/** Loaded by name, so that a command pays only for what it uses itself. */
const COMMANDS: readonly CommandEntry[] = [
  { name: "up", summary: "join the network and connect", load: async () => (await import("./up.ts")).upCommand() },
  {
    name: "down",
    summary: "disconnect; the registration stays",
    load: async () => (await import("./down.ts")).downCommand(),
  },
  {
    name: "status",
    summary: "show the agent and its peers",
    load: async () => (await import("./status.ts")).statusCommand(),
  },
  {
    name: "peers",
    summary: "wake, put to sleep or pin a peer",
    load: async () => (await import("./peers.ts")).peersCommand(),
  },
  {
    name: "why",
    summary: "tell a peer's story: states, causes, times",
    load: async () => (await import("./why.ts")).whyCommand(),
  },
  {
    name: "doctor",
    summary: "say what is wrong, here or with a peer, and what to do",
    load: async () => (await import("./doctor.ts")).doctorCommand(),
  },
  {
    name: "debug",
    summary: "capture the tunnel's packets",
    load: async () => (await import("./debug.ts")).debugCommand(),
  },
  {
    name: "lazy",
    summary: "show or switch lazy connections",
    load: async () => (await import("./lazy.ts")).lazyCommand(),
  },
  {
    name: "ui",
    summary: "open the agent's web page",
    load: async () => (await import("./ui.ts")).uiCommand(),
  },
  {
    name: "login",
    summary: "register this machine without connecting",
    load: async () => (await import("./up.ts")).loginCommand(),
  },
  {
    name: "deregister",
    summary: "remove this machine from the network",
    load: async () => (await import("./down.ts")).deregisterCommand(),
  },
  {
    name: "service",
    summary: "run the agent's daemon, or install it as a service",
    load: async () => (await import("./service.ts")).serviceCommand(),
  },
  {
    name: "state",
    summary: "put back what a daemon that died left changed",
    load: async () => (await import("./state.ts")).stateCommand(),
  },
  { name: "server", summary: "run a network's server", load: loadServer },
  {
    name: "completion",
    summary: "print completion for a shell",
    load: async () => (await import("./completion.ts")).completionCommand(),
  },
  {
    name: "complete-peers",
    summary: "names of peers, for completion scripts",
    load: async () => (await import("./completion.ts")).completePeersCommand(),
    hidden: true,
  },
  { name: "version", summary: "print the version", load: async () => (await import("./version.ts")).versionCommand() },
];

/** Loads every command, for completion and the tests of the documentation. */
export function loadCommands(): Promise<Command[]> {
  return Promise.all(
    presentCommands()
      .filter(({ hidden }) => !hidden)
      .map(({ load }) => load()),
  );
}

/** Runs one command line and returns its exit code; never throws. */
export async function run(args: readonly string[]): Promise<number> {
  process.stdout.on("error", (error: NodeJS.ErrnoException) => {
    // `perch status | head`: the reader has enough.
    if (error.code === "EPIPE") process.exit(EXIT.ok);
    throw error;
  });
  try {
    const program = await createProgram(args);
    await program.parseAsync(args, { from: "user" });
    return typeof process.exitCode === "number" ? process.exitCode : EXIT.ok;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT.ok : EXIT.usage;
    if (!(error instanceof Interrupted)) say(`${paintFor(process.stderr)("red", "perch:")} ${clean(messageOf(error))}`);
    if (process.env.PERCH_DEBUG && error instanceof Error) say(error.stack ?? "");
    return exitCodeOf(error);
  }
}

async function createProgram(args: readonly string[]): Promise<Command> {
  const program = new Command("perch");
  program
    .description("Perch: a WireGuard mesh VPN whose peers sleep until somebody talks to them")
    .version(perchVersion(), "-V, --version", "print the version")
    .helpOption("-h, --help", "show this help")
    .helpCommand("help [command]", "show the help of a command")
    .addHelpText(
      "after",
      [
        "",
        "Examples:",
        "  perch service install                         install and start the daemon",
        "  perch up --management-url https://vpn.example.com --setup-key-file key.txt",
        "  perch status -d                               every peer, its path and why it is in its state",
        "  perch why bob                                 what woke bob, and what took how long",
        "  perch doctor bob                              why bob is relayed or cannot be reached, and what to do",
        "",
        "Every flag may also come from PERCH_<FLAG>, for example PERCH_DAEMON_ADDR. Exit codes: docs/errors.md.",
      ].join("\n"),
    );
  const wanted = wantedCommand(args);
  for (const entry of presentCommands()) {
    const command = entry === wanted ? await entry.load() : new Command(entry.name);
    program.addCommand(command.summary(entry.summary), { hidden: entry.hidden ?? false });
  }
  settle(program);
  return program;
}

/** The command that the arguments name, also as `help NAME`. */
function wantedCommand(args: readonly string[]): CommandEntry | undefined {
  const [first, second] = args.filter((argument) => !argument.startsWith("-"));
  const name = first === "help" ? second : first;
  return COMMANDS.find((entry) => entry.name === name);
}

/** What is the same in every command: errors are thrown and brief, variables stand in for flags. */
function settle(command: Command): void {
  command
    .exitOverride()
    .showSuggestionAfterError(true)
    .configureHelp({ showGlobalOptions: false })
    .configureOutput({
      writeErr: (text) => process.stderr.write(text),
      outputError: (text, write) => {
        const line = text.replace(/^error: /, "").trimEnd();
        write(`${paintFor(process.stderr)("red", "perch:")} ${line}\n(try: ${pathOf(command)} --help)\n`);
      },
    });
  command.hook("preAction", (_, action) => {
    if (action === command) readVariables(command);
  });
  for (const child of command.commands) settle(child);
}

function pathOf(command: Command): string {
  return command.parent ? `${pathOf(command.parent)} ${command.name()}` : command.name();
}

const SETTING_FLAGS: ReadonlySet<string> = new Set(SETTING_NAMES.map((name) => SETTINGS[name].flag));

/** Options that were not given take PERCH_<FLAG> or NB_<FLAG>; settings have rules of their own and are read elsewhere. */
function readVariables(command: Command): void {
  for (const option of command.options) {
    if (option.long === undefined || option.long === "--version" || option.long === "--help") continue;
    const flag = option.long.slice(2);
    const source = command.getOptionValueSource(option.attributeName());
    if (SETTING_FLAGS.has(flag) || (source !== undefined && source !== "default")) continue;
    const found = environmentOf(flag, process.env);
    if (found) command.setOptionValueWithSource(option.attributeName(), parseVariable(option, found), "env");
  }
}

function parseVariable(option: Option, found: { readonly variable: string; readonly text: string }): unknown {
  if (!option.required && !option.optional) return parseSwitch(found.text, found.variable);
  if (!option.parseArg) return found.text;
  try {
    return option.parseArg(found.text, undefined as never);
  } catch (error) {
    throw new DaemonError("value-invalid", `${found.variable}: ${messageOf(error)}`, { cause: error });
  }
}

/** An agent may be installed without the server. */
function presentCommands(): readonly CommandEntry[] {
  return COMMANDS.filter(({ name }) => name !== "server" || existsSync(new URL("./server.ts", import.meta.url)));
}

async function loadServer(): Promise<Command> {
  const file: string = "./server.ts";
  const { serverCommand } = (await import(file)) as { readonly serverCommand: () => Command };
  return serverCommand();
}
