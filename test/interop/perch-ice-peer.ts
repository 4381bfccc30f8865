/*
 * A Perch ICE agent on real UDP sockets, driven like aioice-peer.py by JSON lines; what it says more is `lost`.
 * Arguments: role, and `stock` for the rules towards stock agents.
 */
import { createSocket } from "node:dgram";
import { createInterface } from "node:readline";
import { type Endpoint, isV6, parseIp } from "#base/ip.ts";
import { systemClock } from "#base/time.ts";
import { formatCandidate, parseCandidate } from "#ice/candidate.ts";
import { StunDispatcher } from "#ice/dispatcher.ts";
import { createIceCredentials, gatherHostCandidates } from "#ice/gather.ts";
import { IceAgent } from "#ice/ice-agent.ts";
import { isStun } from "#ice/stun-message.ts";

const PORT = 51820;

const role = process.argv[2] === "controlling" ? "controlling" : "controlled";
const { ufrag, pwd } = createIceCredentials();
const sockets = { 4: createSocket("udp4"), 6: createSocket({ type: "udp6", ipv6Only: true }) };
const dispatcher = new StunDispatcher({ clock: systemClock });
const agent = new IceAgent(
  { clock: systemClock, send: (datagram, to) => transmit(datagram, to) },
  { role, localUfrag: ufrag, localPwd: pwd, stock: process.argv[3] === "stock" },
);
let path: Endpoint | undefined;

function say(message: Record<string, unknown>): void {
  process.stdout.write(`${JSON.stringify(message)}\n`);
}

function transmit(datagram: Uint8Array, to: Endpoint): void {
  sockets[isV6(to.address) ? 6 : 4].send(datagram, to.port, to.address, () => {});
}

for (const [family, socket] of Object.entries(sockets)) {
  socket.on("message", (datagram, sender) => {
    const from = { address: parseIp(sender.address), port: sender.port };
    if (isStun(datagram)) dispatcher.receive(datagram, from);
    else say({ data: datagram.toString() });
  });
  await new Promise<void>((resolve) => socket.bind(PORT, family === "4" ? "0.0.0.0" : "::", resolve));
}

agent.events.on("selected", ({ local, remote, rtt, nominated }) => {
  path = remote.endpoint;
  say({ connected: { local: local.endpoint, remote: remote.endpoint, rtt, nominated } });
});
agent.events.on("lost", ({ reason }) => say({ lost: reason }));
agent.events.on("failed", ({ reason }) => say({ failed: reason }));
dispatcher.register(agent);

say({ credentials: { ufrag, pwd } });
for (const candidate of gatherHostCandidates({ port: PORT, ufrag, blacklist: [] })) {
  agent.addLocalCandidate(candidate);
  say({ candidate: formatCandidate(candidate) });
}

for await (const line of createInterface({ input: process.stdin })) {
  const message = JSON.parse(line) as Record<string, unknown>;
  if ("credentials" in message) agent.setRemoteCredentials(message.credentials as { ufrag: string; pwd: string });
  else if ("candidate" in message) {
    const candidate = parseCandidate(String(message.candidate));
    if (candidate) agent.addRemoteCandidate(candidate);
  } else if ("send" in message && path) transmit(Buffer.from(String(message.send)), path);
  else if ("report" in message) say({ pairs: agent.pairs(), counters: Object.fromEntries(agent.counters()) });
}
agent.close();
sockets[4].close();
sockets[6].close();
