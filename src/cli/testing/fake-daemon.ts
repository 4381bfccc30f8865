import { parseArgs } from "node:util";
import { FakeAgent, makePeers } from "#agent/daemon/testing/fake-agent.ts";
import { messageOf } from "#base/errors.ts";
import { exitCodeOf } from "../exit-codes.ts";
import { runForeground } from "../foreground.ts";

// `perch service run`, or with --up URL `perch up -F`, with an agent in memory, as a process of its own: fake-daemon.ts --daemon-addr A --state-dir D
const { values } = parseArgs({
  options: {
    "daemon-addr": { type: "string" },
    "state-dir": { type: "string" },
    "log-file": { type: "string" },
    "log-level": { type: "string" },
    peers: { type: "string" },
    registered: { type: "boolean" },
    up: { type: "string" },
    stuck: { type: "boolean" },
  },
});
const options = {
  ...(values["daemon-addr"] === undefined ? {} : { daemonAddr: values["daemon-addr"] }),
  ...(values["state-dir"] === undefined ? {} : { stateDir: values["state-dir"] }),
  ...(values["log-file"] === undefined ? {} : { logFile: values["log-file"] }),
  ...(values["log-level"] === undefined ? {} : { logLevel: values["log-level"] }),
};
try {
  const call =
    values.up === undefined ? undefined : { flags: { managementUrl: values.up }, environment: {}, setupKey: undefined };
  await runForeground(options, call, () => {
    const agent = new FakeAgent(makePeers(Number(values.peers ?? 4)));
    agent.registered = values.registered ?? false;
    if (values.stuck) agent.gate = new Promise(() => {});
    return agent;
  });
} catch (error) {
  process.stderr.write(`perch: ${messageOf(error)}\n`);
  process.exitCode = exitCodeOf(error);
}
