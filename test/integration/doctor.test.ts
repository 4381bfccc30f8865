import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { after, before, describe, test } from "node:test";
import { createLab, type Lab } from "../../lab/lab.ts";
import { NAT } from "../../lab/nat.ts";
import { PerchNetwork, waitFor } from "../../lab/perch-network.ts";
import { skipWithoutLab } from "../../lab/rootless.ts";
import { hostPerSite } from "../../lab/topology.ts";

/** A search for a direct way is given up after 10 s. */
const SEARCH_TIMEOUT = 20_000;

interface Doctor {
  readonly code: number;
  readonly document: {
    readonly healthy: boolean;
    readonly verdict: string;
    readonly certainty: string;
    readonly cause: string;
    readonly remedy: string;
    readonly here: { readonly udp: string; readonly mapping: string };
    readonly there: { readonly agent: string; readonly udp: string; readonly mapping: string };
    readonly search: { readonly outcome: string; readonly pairs: readonly { readonly sent: number }[] } | null;
    readonly findings: readonly { readonly area: string; readonly level: string; readonly text: string }[];
    readonly udp: { readonly mapping: string; readonly state: string };
  };
}

describe("perch doctor between real agents in the lab", { skip: await skipWithoutLab() }, () => {
  let lab: Lab;
  let network: PerchNetwork;
  const agents = ["alder", "birch", "cedar", "dogwood", "elm"];

  before(async () => {
    lab = await createLab(
      hostPerSite({
        hub: {},
        alder: { nat: NAT.symmetric },
        birch: { nat: NAT.portRestricted },
        cedar: {},
        dogwood: { nat: NAT.portRestricted, udp: "blocked" },
        elm: {},
      }),
    );
    const key = randomBytes(32).toString("base64");
    const upFlags = (agent: string): readonly string[] => (agent === "elm" ? ["--preshared-key", key] : []);
    network = await PerchNetwork.start(lab, { server: "hub", agents, upFlags });
  });

  after(async () => {
    await network?.close();
    await lab?.close();
  });

  async function doctor(agent: string, ...args: readonly string[]): Promise<Doctor> {
    const { code, stdout, stderr } = await network.agent(agent).perch(["doctor", ...args, "--json"]);
    assert.match(stdout, /^\{.*\}\n$/, stderr);
    return { code: code ?? -1, document: JSON.parse(stdout) };
  }

  const wake = (from: string, to: string): Promise<string> => network.agent(from).mustPerch(["peers", "wake", to]);

  /** Asks until the search for a direct way is over. */
  async function conclusion(from: string, to: string): Promise<Doctor> {
    const deadline = performance.now() + SEARCH_TIMEOUT;
    for (;;) {
      const answer = await doctor(from, to);
      if (!["connecting", "searching"].includes(answer.document.verdict)) return answer;
      assert.ok(performance.now() < deadline, `still ${answer.document.verdict}`);
      await new Promise((resolve) => setTimeout(resolve, 500));
    }
  }

  test("a peer that sleeps is well, and is not woken by the question", { timeout: 20_000 }, async () => {
    const { code, document } = await doctor("birch", "cedar");
    assert.deepEqual([code, document.verdict], [0, "asleep"]);
    assert.equal((await network.agent("birch").peer("cedar")).status, "Idle");
  });

  test("a direct pair is well, and tells each side what its NAT does", { timeout: 30_000 }, async () => {
    await Promise.all([wake("alder", "cedar"), wake("birch", "cedar")]);
    for (const [name, mapping] of [
      ["alder", "endpoint-dependent"],
      ["birch", "endpoint-independent"],
    ] as const) {
      const agent = network.agent(name);
      await waitFor(async () => (await agent.peer("cedar")).connectionType === "P2P", `${name} direct`, 10_000);
      const pair = await doctor(name, "cedar");
      assert.deepEqual(
        [pair.code, pair.document.verdict, pair.document.there],
        [0, "direct", { agent: "perch", udp: "works", mapping: "none" }],
      );
      const self = await doctor(name);
      assert.equal(self.code, 0, JSON.stringify(self.document.findings));
      assert.deepEqual([self.document.udp.state, self.document.udp.mapping], ["works", mapping]);
    }
  });

  test("pairs without a direct way, and a peer whose machine is off or whose key differs: cause and remedy are those of the lab", {
    timeout: 60_000,
  }, async () => {
    await network.agent("cedar").stop("SIGKILL");
    await Promise.all([
      wake("alder", "birch"),
      wake("birch", "dogwood"),
      wake("dogwood", "cedar"),
      wake("elm", "birch"),
    ]);
    const [symmetric, strict, blocked, opposite, offline, stranger] = await Promise.all([
      conclusion("alder", "birch"),
      conclusion("birch", "alder"),
      conclusion("dogwood", "birch"),
      conclusion("birch", "dogwood"),
      conclusion("dogwood", "cedar"),
      conclusion("elm", "birch"),
    ]);
    const seen = ({ code, document: { verdict, certainty } }: Doctor) => [code, verdict, certainty];
    assert.deepEqual(seen(symmetric), [1, "symmetric-here", "certain"], symmetric.document.cause);
    assert.match(
      symmetric.document.cause,
      /^The NAT here is symmetric.*NAT of birch lets in only the exact address and port/,
    );
    assert.match(symmetric.document.remedy, /^Forward UDP port 51820 to this machine/);
    assert.equal(symmetric.document.search?.outcome, "failed");
    assert.ok(symmetric.document.search.pairs.some(({ sent }) => sent > 5));
    assert.deepEqual(seen(strict), [1, "symmetric-there", "certain"], strict.document.cause);
    assert.deepEqual(seen(blocked), [1, "udp-blocked-here", "certain"], blocked.document.cause);
    // What dogwood told of itself, or else that it named no outside address: it was woken before its own servers were given up.
    assert.deepEqual(seen(opposite).slice(0, 2), [1, "udp-blocked-there"], opposite.document.cause);
    assert.deepEqual(seen(offline), [1, "peer-offline", "certain"], offline.document.cause);
    assert.deepEqual(seen(stranger), [1, "handshake-unanswered", "likely"], stranger.document.cause);
    assert.match(stranger.document.cause, /pre-shared keys differ\.$/);
    const self = await doctor("dogwood");
    assert.equal(self.code, 1);
    assert.deepEqual(
      self.document.findings.filter(({ level }) => level === "problem").map(({ area }) => area),
      ["stun", "udp"],
    );
    const words = (await network.agent("alder").perch(["doctor", "birch"])).stdout;
    assert.match(words, /^birch\.\S+ is Connected for .*, relayed by rel:.*\n\nWhy: {3}The NAT here is symmetric/);
    assert.match(words, /\nNAT +another one for each destination \(symmetric\) +one outer address for all/);
  });
});
