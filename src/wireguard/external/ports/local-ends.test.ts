import { silentLogger } from "#base/log.ts";
import { systemClock } from "#base/time.ts";
import type { LocalEnds } from "../parts.ts";
import { describeLocalEnds } from "../testing/local-ends-suite.ts";
import { LoopbackAddresses } from "./loopback-addresses.ts";
import { LoopbackMac1 } from "./loopback-mac1.ts";
import { LoopbackSockets } from "./loopback-sockets.ts";
import { PortThread } from "./port-thread.ts";

const missing = process.platform === "linux" ? undefined : "needs Linux";

/** Closes the thread as well. */
function withThread(ends: LocalEnds, thread: PortThread): LocalEnds {
  const dispose = ends[Symbol.asyncDispose].bind(ends);
  ends[Symbol.asyncDispose] = async () => {
    await dispose();
    await thread.close();
  };
  return ends;
}

describeLocalEnds({
  name: "loopback addresses",
  missing,
  async create(devicePort) {
    const thread = await PortThread.start({ log: silentLogger, clock: systemClock });
    return withThread(LoopbackAddresses.open(thread, { devicePort }), thread);
  },
});

describeLocalEnds({
  name: "a loopback socket each",
  missing,
  create: async (devicePort) => new LoopbackSockets({ devicePort }),
});

describeLocalEnds({
  name: "one loopback socket and mac1",
  missing,
  create: async (devicePort) => new LoopbackMac1({ clock: systemClock }, { devicePort }),
});
