import { Command } from "commander";
import type { DaemonClient } from "#agent/daemon/daemon-client.ts";
import type { Peer } from "#gen/daemon_pb.ts";
import { type DaemonOptions, withDaemon, withDaemonOption } from "./daemon-connection.ts";
import { stateName } from "./status-view.ts";
import { clean, print } from "./terminal.ts";

const PEER_HELP = "PEER is a name (bob or bob.example.net), an overlay address or a public key.";

interface Verb {
  readonly name: string;
  readonly summary: string;
  readonly call: (client: DaemonClient, peer: string) => Promise<Peer>;
  readonly tell: (peer: Peer) => string;
}

const VERBS: readonly Verb[] = [
  {
    name: "wake",
    summary: "connect to a peer now",
    call: (client, peer) => client.wakePeer({ peer }),
    tell: (peer) => stateWords(peer),
  },
  {
    name: "sleep",
    summary: "let a peer sleep until there is traffic",
    call: (client, peer) => client.sleepPeer({ peer }),
    tell: (peer) => stateWords(peer),
  },
  {
    name: "pin",
    summary: "keep a peer connected, now and after restarts",
    call: (client, peer) => client.pinPeer({ peer, pinned: true }),
    tell: (peer) => `pinned, ${stateWords(peer)}`,
  },
  {
    name: "unpin",
    summary: "let a pinned peer sleep again",
    call: (client, peer) => client.pinPeer({ peer, pinned: false }),
    tell: (peer) => `no longer pinned, ${stateWords(peer)}`,
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
            const peer = await verb.call(client, wanted);
            print(`${clean(peer.fqdn) || wanted}: ${verb.tell(peer)}`);
          });
        }),
    );
  }
  return command;
}

function stateWords(peer: Peer): string {
  return `${stateName(peer.state)}${peer.reason ? `, ${clean(peer.reason)}` : ""}`;
}
