import assert from "node:assert/strict";
import { mkdtempDisposableSync, readdirSync, readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { parsePrefix } from "#base/ip.ts";
import { FilterError, type FilterRule } from "../filter.ts";
import { ExternalDeviceError } from "./external-error.ts";
import { type Nft, nftProgram } from "./nft.ts";
import { NftRules } from "./nft-rules.ts";
import { nftTableName } from "./nft-table.ts";

const SOURCE = parsePrefix("100.64.0.2/32");
const RULE: FilterRule = { source: SOURCE, protocol: "tcp", ports: { first: 22, last: 22 }, verdict: "accept" };

/** An nft that takes note and, for so many transactions, refuses. */
class PaperNft implements Nft {
  readonly texts: string[] = [];
  refusals = 0;
  removed: (table: string | undefined) => void = () => {};
  watchers = 0;

  async run(text: string, { check = false } = {}): Promise<void> {
    if (!check) this.texts.push(text);
    if (this.refusals === 0) return;
    this.refusals--;
    throw new ExternalDeviceError("control-failed", "refused");
  }

  async count(): Promise<number> {
    return 7;
  }

  watchRemovals(removed: (table: string | undefined) => void): () => void {
    this.watchers++;
    this.removed = removed;
    return () => void this.watchers--;
  }
}

async function open(): Promise<{ nft: PaperNft; rules: NftRules; failures: string[] }> {
  const nft = new PaperNft();
  const rules = await NftRules.open("wg0", nft);
  const failures: string[] = [];
  rules.events.on("failed", ({ reason }) => failures.push(reason));
  nft.texts.length = 0;
  return { nft, rules, failures };
}

test("without nft rules are refused by the name of the package, and having none is not", async () => {
  const rules = await NftRules.open("wg0", nftProgram(["perch-no-such-nft"]));
  const refused = { code: "program-missing", message: /Debian package nftables/ };
  assert.throws(() => rules.set({ inbound: [], otherwise: "accept" }), refused);
  assert.throws(() => rules.setSource(SOURCE, [RULE]), refused);
  rules.set(undefined);
  await rules.close();
});

test("an nft that may not is told from one that cannot", async () => {
  const rules = await NftRules.open(
    "wg0",
    nftProgram(["sh", "-c", "cat >/dev/null; echo Operation not permitted >&2; exit 1"]),
  );
  assert.throws(() => rules.set({ inbound: [], otherwise: "drop" }), { code: "not-permitted" });
});

test("rules that cannot be are refused, and those in force stay", async () => {
  const { nft, rules } = await open();
  rules.set({ inbound: [RULE], otherwise: "drop" });
  await rules.settled();
  const bad: FilterRule = { ...RULE, protocol: "icmp" };
  assert.throws(() => rules.set({ inbound: [bad], otherwise: "drop" }), FilterError);
  assert.throws(() => rules.setSource(SOURCE, [bad]), FilterError);
  await rules.settled();
  assert.equal(nft.texts.length, 1);
});

test("sources with the same rules share one list, which goes with the last of them", async () => {
  const { nft, rules } = await open();
  const other = parsePrefix("100.64.0.3/32");
  rules.set({ inbound: [RULE, { ...RULE, source: other }], otherwise: "drop" });
  await rules.settled();
  assert.equal(nft.texts[0]!.match(/add chain .* list\d/g)?.length, 1);
  rules.setSource(other, []);
  await rules.settled();
  assert.doesNotMatch(nft.texts[1]!, /delete chain/);
  rules.setSource(SOURCE, []);
  await rules.settled();
  assert.match(nft.texts[2]!, /delete map .* accept4_32\n(.*\n)*delete chain .* list1/);
});

test("what is the same already costs nothing", async () => {
  const { nft, rules } = await open();
  rules.set({ inbound: [RULE], otherwise: "drop" });
  await rules.settled();
  rules.set({ inbound: [{ ...RULE }], otherwise: "drop" });
  rules.setSource(SOURCE, [RULE]);
  await rules.settled();
  assert.equal(nft.texts.length, 1);
  assert.equal(nft.watchers, 1);
  await rules.close();
  assert.equal(nft.watchers, 0);
  assert.equal(nft.texts.length, 2);
  await rules.close();
  assert.equal(nft.texts.length, 2);
});

test("a refused change is followed by the whole, and a refused whole is told", async () => {
  const { nft, rules, failures } = await open();
  rules.set({ inbound: [], otherwise: "drop" });
  await rules.settled();
  nft.refusals = 1;
  rules.setSource(SOURCE, [RULE]);
  await rules.settled();
  assert.equal(nft.texts.length, 3);
  assert.match(nft.texts[2]!, /^add table inet perch-wg0\ndelete table inet perch-wg0\n/);
  assert.match(nft.texts[2]!, /100\.64\.0\.2 : jump/);
  assert.deepEqual(failures, []);
  nft.refusals = 2;
  rules.setSource(SOURCE, []);
  await rules.settled();
  assert.deepEqual(failures, ["refused"]);
});

test("a table that is gone is made again, one of another interface is not ours", async () => {
  const { nft, rules } = await open();
  rules.set({ inbound: [RULE], otherwise: "drop" });
  await rules.settled();
  nft.removed("inet perch-wg1");
  await rules.settled();
  nft.refusals = 1;
  nft.removed("inet perch-wg0");
  await rules.settled();
  assert.equal(nft.texts.length, 2);
  assert.equal(nft.texts[1], nft.texts[0]);
  nft.removed(undefined);
  await rules.settled();
  assert.equal(nft.texts.length, 2, "it is still there");
  nft.refusals = 1;
  nft.removed(undefined);
  await rules.settled();
  assert.equal(nft.texts.length, 3);
});

test("a monitor that ended is started again, and what it missed is asked for", { timeout: 10_000 }, async () => {
  using folder = mkdtempDisposableSync(join(tmpdir(), "perch-nft-"));
  const starts = join(folder.path, "starts");
  const script = `env > ${starts}.$$; [ $(ls ${folder.path} | wc -l) = 1 ] && exit; echo delete table inet t; exec sleep 60`;
  process.env.PERCH_SETUP_KEY = "not for other programs";
  const told: (string | undefined)[] = [];
  const settled = Promise.withResolvers<void>();
  const end = nftProgram(["sh", "-c", script]).watchRemovals((table) => {
    told.push(table);
    if (table === undefined) settled.resolve();
  });
  // It does not hold the process, so something else must.
  const hold = setInterval(() => {}, 1000);
  try {
    await settled.promise;
    assert.deepEqual(told, ["inet t", undefined]);
    const files = readdirSync(folder.path);
    assert.equal(files.length, 2);
    for (const file of files) assert.doesNotMatch(readFileSync(join(folder.path, file), "utf8"), /SETUP/);
  } finally {
    end();
    clearInterval(hold);
    delete process.env.PERCH_SETUP_KEY;
  }
});

test("dropped packets are counted when somebody asks, at most once a second, and over tables", async () => {
  const { nft, rules } = await open();
  rules.set({ inbound: [], otherwise: "drop" });
  await rules.settled();
  const dropped = (): number | undefined => rules.counters().get("drop-filter");
  assert.equal(dropped(), 0);
  await Promise.resolve();
  assert.equal(dropped(), 7);
  nft.refusals = 1;
  rules.setSource(SOURCE, [RULE]);
  await rules.settled();
  assert.equal(dropped(), 7, "the new table has counted nothing yet");
});

const ALL: FilterRule = { source: SOURCE, protocol: "all", verdict: "accept" };
const tracks = (text: string | undefined): boolean => / ct /.test(text!);

test("the kernel tracks connections only while some peer may not do everything, and the change is one transaction", async () => {
  const { nft, rules } = await open();
  const isTracked = (): number | undefined => rules.counters().get("filter-tracked");
  rules.movePrefixes([], [SOURCE]);
  rules.set({ inbound: [ALL], otherwise: "drop" });
  await rules.settled();
  assert.equal(nft.texts.length, 1);
  assert.equal(tracks(nft.texts[0]), false);
  assert.equal(isTracked(), 0);
  rules.setSource(SOURCE, [RULE]);
  await rules.settled();
  assert.equal(nft.texts.length, 2);
  assert.match(
    nft.texts[1]!,
    /flush chain .* inbound\n(.*\n)*.* inbound ct direction reply(.*\n)*.* 100\.64\.0\.2 : jump/,
  );
  assert.equal(isTracked(), 1);
  rules.setSource(SOURCE, [ALL]);
  await rules.settled();
  assert.equal(nft.texts.length, 3);
  assert.equal(tracks(nft.texts[2]), false);
  rules.set(undefined);
  await rules.settled();
  assert.equal(isTracked(), 0);
});

test("a peer that comes with its rules changes no form, one without any does, and so does its going", async () => {
  const { nft, rules } = await open();
  const other = parsePrefix("100.64.0.3/32");
  rules.movePrefixes([], [SOURCE]);
  rules.set({ inbound: [ALL], otherwise: "drop" });
  await rules.settled();
  rules.movePrefixes([], [other]);
  rules.setSource(other, [ALL]);
  await rules.settled();
  assert.equal(nft.texts.length, 2);
  assert.doesNotMatch(nft.texts[1]!, /inbound/);
  const routed = parsePrefix("192.168.7.0/24");
  rules.movePrefixes([other], [other, routed]);
  await rules.settled();
  assert.equal(tracks(nft.texts[2]), true);
  rules.movePrefixes([other, routed], []);
  rules.movePrefixes([], [SOURCE]);
  await rules.settled();
  assert.equal(tracks(nft.texts[3]), false);
  assert.equal(nft.texts.length, 4);
});

test("a table that is made anew has the form of the one that was there", async () => {
  const { nft, rules } = await open();
  rules.movePrefixes([], [SOURCE]);
  rules.set({ inbound: [ALL], otherwise: "drop" });
  await rules.settled();
  nft.refusals = 1;
  rules.setSource(SOURCE, [RULE]);
  await rules.settled();
  assert.equal(tracks(nft.texts[2]), true);
  nft.refusals = 1;
  nft.removed("inet perch-wg0");
  await rules.settled();
  assert.equal(nft.texts[3], nft.texts[2]);
});

test("interfaces with unusual names have tables of their own, and those that nft cannot name have no filter", async () => {
  const names = ["wg0", "wg@0", "wg_40", "wg=0", "é"].map(nftTableName);
  assert.equal(new Set(names).size, names.length);
  for (const name of names) assert.match(name, /^inet perch-[A-Za-z0-9._-]+$/);
  for (const name of ["wg*", 'w"g', "w\\g"]) {
    const rules = await NftRules.open(name, new PaperNft());
    assert.throws(() => rules.set({ inbound: [], otherwise: "drop" }), { code: "control-failed" });
  }
});
