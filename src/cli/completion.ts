import { Argument, Command } from "commander";
import { print } from "./terminal.ts";

export function completionCommand(): Command {
  return new Command("completion")
    .description("Prints a completion script for a shell.")
    .addArgument(new Argument("<SHELL>").choices(["bash", "zsh", "fish"]))
    .addHelpText("after", "\nExample:\n  perch completion bash > /etc/bash_completion.d/perch")
    .action(async (shell: "bash" | "zsh" | "fish") => {
      const { loadCommands } = await import("./program.ts");
      const words = wordsOf(await loadCommands());
      print(shell === "fish" ? fishScript(words) : bashScript(words, shell === "zsh"));
    });
}

/** What may follow each command path: `""` is `perch` itself. */
type Words = ReadonlyMap<string, readonly string[]>;

function wordsOf(commands: readonly Command[]): Words {
  const words = new Map<string, readonly string[]>([["", [...commands.map((command) => command.name()), "help"]]]);
  const visit = (command: Command, path: string): void => {
    const children = command.commands.map((child) => child.name());
    const flags = command.options.flatMap((option) => (option.long ? [option.long] : []));
    words.set(path, [...children, ...flags, "--help"]);
    for (const child of command.commands) visit(child, `${path} ${child.name()}`);
  };
  for (const command of commands) visit(command, command.name());
  return words;
}

function bashScript(words: Words, zsh: boolean): string {
  const cases = [...words].map(([path, next]) => `    "${path}") words="${next.join(" ")}" ;;`);
  const bashcompinit = zsh ? "autoload -U +X bashcompinit && bashcompinit\n" : "";
  // The command path is what stands before the cursor, without flags.
  return `${bashcompinit}_perch() {
  local word path="" words="" i
  for ((i = 1; i < COMP_CWORD; i++)); do
    word=\${COMP_WORDS[i]}
    case $word in -*) continue ;; esac
    path="\${path:+$path }$word"
  done
  case "$path" in
${cases.join("\n")}
  esac
  COMPREPLY=($(compgen -W "$words" -- "\${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _perch perch`;
}

function fishScript(words: Words): string {
  const lines = ["complete -c perch -f"];
  for (const [path, next] of words) {
    const condition =
      path === ""
        ? "__fish_use_subcommand"
        : path
            .split(" ")
            .map((word) => `__fish_seen_subcommand_from ${word}`)
            .join("; and ");
    for (const word of next) {
      const what = word.startsWith("--") ? `-l ${word.slice(2)}` : `-a ${word}`;
      lines.push(`complete -c perch -n '${condition}' ${what}`);
    }
  }
  return lines.join("\n");
}
