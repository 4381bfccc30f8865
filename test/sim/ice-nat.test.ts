import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { createPairOfPeers, Network, signalBetween } from "./ice-network.ts";
import { isDirectPossible, NAT_KINDS } from "./internet.ts";

describe("two agents behind NATs, 20 ms one way, 40 ms signalling", () => {
  for (const stock of [false, true]) {
    for (const a of NAT_KINDS) {
      for (const b of NAT_KINDS) {
        const possible = isDirectPossible(a, b);
        test(`${a} to ${b}${stock ? " with stock rules" : ""} is ${possible ? "direct" : "left to the relay"}`, async (t) => {
          const network = new Network();
          const [left, right] = createPairOfPeers(network, [a, b], { stock });
          signalBetween(left, right);
          await network.advance(possible ? 3_000 : 15_000);
          if (possible) {
            assert.equal(left.agent.state, "selected");
            assert.equal(right.agent.state, "selected");
            t.diagnostic(
              `${a}/${b} stock=${stock}: ${left.selectedAt} and ${right.selectedAt} ms, ${network.sent} packets`,
            );
            assert.ok(left.selected && right.selected);
            assert.ok(left.selected.nominated && left.agent.pairs().some((pair) => pair.selected && pair.nominated));
          } else {
            assert.equal(left.agent.state, "failed");
            assert.equal(right.agent.state, "failed");
            assert.equal(left.selectedAt ?? right.selectedAt, undefined);
          }
          left.close();
          right.close();
          await network.advance(5_000);
          assert.equal(network.clock.pending, 0);
        });
      }
    }
  }
});
