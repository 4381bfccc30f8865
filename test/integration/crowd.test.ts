/** Many sleeping peers that answer for real, touched at once by programs of a real agent's machine. */
import assert from "node:assert/strict";
import { before, test } from "node:test";
import { SIGNAL_BURST, SIGNAL_RATE } from "#agent/connections/message-budget.ts";
import { Crowd } from "../../bench/crowd.ts";
import { ensurePrivileges } from "../../lab/rootless.ts";

const ENDS = 400;
/** What begun wakes may send beyond the budget before the next have to wait. */
const DEBT_MAX = SIGNAL_BURST;
/** Idle beside them. */
const OTHERS = 600;

before(() => ensurePrivileges());

test(`${ENDS} sleeping peers touched within half a second are all connected, within the budget of signal messages`, {
  timeout: 120_000,
}, async (t) => {
  await using crowd = await Crowd.start(ENDS, ENDS + OTHERS);
  const { touch, connected, ends, busiestSecond } = await crowd.touch(500);
  t.diagnostic(
    `connected after ${(touch.allMs / 1000).toFixed(1)} s, ${ends.messages.length} signal messages, ${busiestSecond} in the busiest second`,
  );
  assert.deepEqual(
    touch.times.filter((each) => each === null),
    [],
    "programs that were not connected",
  );
  assert.equal(connected, ENDS, "as the agent sees them");
  assert.equal(ends.connected, ENDS, "as they see the agent");
  // Over all of it: a process under load takes messages later than they came, and then more in one second than were sent in it.
  const [first, last] = [Math.min(...ends.messages), Math.max(...ends.messages)];
  const budget = SIGNAL_BURST + DEBT_MAX + (SIGNAL_RATE * (last - first)) / 1000;
  assert.ok(ends.messages.length <= budget, `${ends.messages.length} signal messages, at most ${budget.toFixed(0)}`);
});
