import { Command } from "commander";
import type { DaemonClient } from "#agent/daemon/daemon-client.ts";
import { type Peer, PeerState } from "#gen/daemon_pb.ts";
import { type DaemonOptions, withDaemon, withDaemonOption } from "./daemon-connection.ts";
import { clean, print } from "./terminal.ts";

const PEER_HELP = "PEER is a name (bob or bob.example.net), an overlay address or a public key.";

interface Verb {
  readonly name: string;
  readonly summary: string;
  readonly call: (client: DaemonClient, peer: string) => Promise<Peer>;
  /** `words` are the peer's state and its reason. */
  readonly tell: (words: string, state: PeerState) => string;
}

const VERBS: readonly Verb[] = [
  {
    name: "wake",
    summary: "connect to a peer now",
    call: (client, peer) => client.wakePeer({ peer }),
    tell: (words) => words,
  },
  {
    name: "sleep",
    summary: "let a peer sleep until there is traffic",
    call: (client, peer) => client.sleepPeer({ peer }),
    // A Perch agent at the other end answers first; `perch why` knows what.
    tell: (words, state) => (state === PeerState.IDLE ? words : `${words}; the other side was asked to sleep as well`),
  },
  {
    name: "pin",
    summary: "keep a peer connected, now and after restarts",
    call: (client, peer) => client.pinPeer({ peer, pinned: true }),
    tell: (words) => `pinned, ${words}`,
  },
  {
    name: "unpin",
    summary: "let a pinned peer sleep again",
    call: (client, peer) => client.pinPeer({ peer, pinned: false }),
    tell: (words) => `no longer pinned, ${words}`,
  },
];

export function peersCommand(): Command {
  const command = new Command("peers").description(`Acts on one peer. ${PEER_HELP}`);
  for (const verb of VERBS) {
    command.addCommand(
      withDaemonOption(new Command(verb.name))
        .summary(verb.summary)
        .description(`${verb.summary[0]!.toUpperCase()}${verb.summary.slice(1)}. ${PEER_HELP}`)
        .argument("<PEER>")
        .addHelpText("after", `\nExample:\n  perch peers ${verb.name} bob`)
        .action(async (wanted: string, options: DaemonOptions) => {
          await withDaemon(options, async (client) => {
            const { stateName } = await import("./status-view.ts");
            const { fqdn, reason, state } = await verb.call(client, wanted);
            const words = `${stateName(state)}${reason ? `, ${clean(reason)}` : ""}`;
            print(`${clean(fqdn) || wanted}: ${verb.tell(words, state)}`);
          });
        }),
    );
  }
  return command;
}
