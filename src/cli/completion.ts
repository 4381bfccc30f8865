import { Argument, Command } from "commander";
import { type DaemonOptions, withDaemon, withDaemonOption } from "./daemon-connection.ts";
import type { StatusOptions } from "./status.ts";
import { print } from "./terminal.ts";

/** Who presses Tab does not wait longer for the daemon, nor wants to see more names. */
const PEERS_LIMIT_MS = 500;
const PEERS_MAX = 1000;

export function completionCommand(): Command {
  return new Command("completion")
    .description("Prints a completion script for a shell. Where a peer is named, it asks the daemon for the names.")
    .addArgument(new Argument("<SHELL>").choices(["bash", "zsh", "fish"]))
    .addHelpText(
      "after",
      [
        "",
        "Examples:",
        "  perch completion bash > /etc/bash_completion.d/perch",
        "  perch completion zsh >> ~/.zshrc",
        "  perch completion fish > ~/.config/fish/completions/perch.fish",
      ].join("\n"),
    )
    .action(async (shell: "bash" | "zsh" | "fish") => {
      const { loadCommands } = await import("./program.ts");
      const words = wordsOf(await loadCommands());
      print(shell === "fish" ? fishScript(words) : bashScript(words, shell === "zsh"));
    });
}

/** What the scripts run: names of peers that begin with what was typed, a line each; nothing where no daemon answers soon. */
export function completePeersCommand(): Command {
  return withDaemonOption(new Command("complete-peers"))
    .description("Prints the names of peers that begin with the argument, for completion scripts.")
    .argument("[BEGINNING]")
    .action(async (beginning: string | undefined, options: DaemonOptions) => {
      const names: string[] = [];
      try {
        await withDaemon(options, async (client, interrupted) => {
          const { filterOf } = await import("./status-show.ts");
          const wanted: StatusOptions = beginning ? { filterByNames: [beginning] } : {};
          const signal = AbortSignal.any([interrupted, AbortSignal.timeout(PEERS_LIMIT_MS)]);
          for await (const { peers } of client.getStatus(filterOf(wanted, true), { signal })) {
            for (const { fqdn } of peers) if (isPlainName(fqdn)) names.push(fqdn);
            if (names.length >= PEERS_MAX) break;
          }
        });
      } catch {
        // Who completes a word has not asked for an error.
      }
      const shown = new Set(names.slice(0, PEERS_MAX));
      if (shown.size > 0) print([...shown].join("\n"));
    });
}

/** Names come from the network, and bash expands what it completes with: one that is more than letters, digits, - _ . is left out. */
export function isPlainName(name: string): boolean {
  return /^[\w][\w.-]*$/.test(name);
}

/** What may follow one command path. */
interface Follow {
  readonly words: readonly string[];
  /** Whether an argument is a peer. */
  readonly takesPeer: boolean;
}

/** By command path: `""` is `perch` itself. */
type Words = ReadonlyMap<string, Follow>;

function wordsOf(commands: readonly Command[]): Words {
  const first = [...commands.map((command) => command.name()), "help"];
  const words = new Map<string, Follow>([["", { words: first, takesPeer: false }]]);
  const visit = (command: Command, path: string): void => {
    const children = command.commands.map((child) => child.name());
    const flags = command.options.flatMap((option) => (option.long ? [option.long] : []));
    const takesPeer = command.registeredArguments.some((argument) => argument.name() === "PEER");
    words.set(path, { words: [...children, ...flags, "--help"], takesPeer });
    for (const child of command.commands) visit(child, `${path} ${child.name()}`);
  };
  for (const command of commands) visit(command, command.name());
  return words;
}

/** Runs in zsh too, through its emulation of bash's completion. */
function bashScript(words: Words, zsh: boolean): string {
  const cases = [...words].map(
    ([path, { words: next, takesPeer }]) =>
      `    "${path}") offers="${next.join(" ")}"${takesPeer ? " peers=1" : ""} ;;`,
  );
  const bashcompinit = zsh ? "autoload -U +X bashcompinit && bashcompinit\n" : "";
  // The command path is made of the words before the cursor that are commands: flags, their values and arguments are not. Not named path and
  // words: both mean something to zsh.
  return `${bashcompinit}_perch_words() {
  case "$1" in
${cases.join("\n")}
    *) return 1 ;;
  esac
}
_perch() {
  local word at="" offers="" peers="" i cur="\${COMP_WORDS[COMP_CWORD]}" before="\${COMP_WORDS[COMP_CWORD-1]}"
  for ((i = 1; i < COMP_CWORD; i++)); do
    word=\${COMP_WORDS[i]}
    _perch_words "\${at:+$at }$word" && at="\${at:+$at }$word"
  done
  offers="" peers=""
  _perch_words "$at"
  case "$cur" in
    -*) peers="" ;;
  esac
  if [ "$before" = --peer ]; then offers="" peers=1; fi
  if [ -n "$peers" ]; then offers="$offers $(perch complete-peers -- "$cur" 2>/dev/null)"; fi
  COMPREPLY=($(compgen -W "$offers" -- "$cur"))
}
complete -o default -F _perch perch`;
}

function fishScript(words: Words): string {
  const lines = ["complete -c perch -f"];
  const peers = "'(perch complete-peers -- (commandline -ct) 2>/dev/null)'";
  for (const [path, { words: next, takesPeer }] of words) {
    const condition =
      path === ""
        ? "__fish_use_subcommand"
        : path
            .split(" ")
            .map((word) => `__fish_seen_subcommand_from ${word}`)
            .join("; and ");
    for (const word of next) {
      const value = word === "--peer" ? ` -x -a ${peers}` : "";
      const what = word.startsWith("--") ? `-l ${word.slice(2)}${value}` : `-a ${word}`;
      lines.push(`complete -c perch -n '${condition}' ${what}`);
    }
    if (takesPeer) lines.push(`complete -c perch -n '${condition}' -a ${peers}`);
  }
  return lines.join("\n");
}
