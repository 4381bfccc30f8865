import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { formatPrefix, isV6, maskPrefix, type Prefix, parsePrefix, prefixContains } from "#base/ip.ts";
import type { FilterVerdict, SourceRule } from "../filter.ts";
import { OpenSources, type RuleForm } from "./open-sources.ts";

const ALL: SourceRule = { protocol: "all", verdict: "accept" };
const OWN = parsePrefix("100.64.0.1/32");
const prefixes = (...texts: string[]): Prefix[] => texts.map(parsePrefix);

function openTo(...sources: string[]): OpenSources {
  const open = new OpenSources();
  for (const source of prefixes(...sources)) open.setRules(source, [ALL]);
  return open;
}

test("while no peer may send, nothing has to be told from anything", () => {
  assert.equal(new OpenSources().form, "open");
});

test("peers that may do everything are open, one that may not ends it, also in the other family", () => {
  const open = openTo("100.64.0.2/32", "fd00::2/128");
  open.movePrefixes([], prefixes("100.64.0.2/32", "fd00::2/128"));
  assert.equal(open.form, "open");
  open.movePrefixes([], prefixes("fd00::3/128"));
  assert.equal(open.form, "tracked");
  open.setRules(parsePrefix("fd00::3/128"), [ALL]);
  assert.equal(open.form, "open");
  open.setRules(parsePrefix("100.64.0.2/32"), [{ ...ALL, protocol: "tcp" }]);
  assert.equal(open.form, "tracked");
  open.movePrefixes(prefixes("100.64.0.2/32"), []);
  assert.equal(open.form, "open");
});

test("what a peer routes needs a rule of its own, or one that contains it", () => {
  const open = openTo("100.64.0.2/32");
  open.movePrefixes([], prefixes("100.64.0.2/32", "192.168.7.0/24"));
  assert.equal(open.form, "tracked");
  open.setRules(parsePrefix("192.168.7.0/25"), [ALL]);
  assert.equal(open.form, "tracked");
  open.setRules(parsePrefix("0.0.0.0/0"), [ALL]);
  assert.equal(open.form, "open");
});

test("rules that say less than everything open nothing", () => {
  for (const rule of [
    { ...ALL, protocol: "udp" },
    { ...ALL, ports: { first: 0, last: 65_535 } },
  ] as const) {
    const open = new OpenSources();
    open.movePrefixes([], prefixes("100.64.0.2/32"));
    open.setRules(parsePrefix("0.0.0.0/0"), [rule]);
    assert.equal(open.form, "tracked");
  }
});

test("a rule to drop anywhere ends it, and so long", () => {
  const open = openTo("100.64.0.2/32");
  open.movePrefixes([], prefixes("100.64.0.2/32"));
  open.otherwise = "accept";
  const elsewhere = parsePrefix("10.0.0.0/8");
  open.setRules(elsewhere, [{ protocol: "tcp", ports: { first: 25, last: 25 }, verdict: "drop" }]);
  assert.equal(open.form, "tracked");
  open.setRules(elsewhere, []);
  assert.equal(open.form, "open");
});

test("rules for our own address open, rules for several places do not", () => {
  const open = new OpenSources();
  open.movePrefixes([], prefixes("100.64.0.2/32", "100.64.0.3/32"));
  open.setRules(parsePrefix("100.64.0.2/32"), [{ ...ALL, destination: OWN }]);
  open.setRules(parsePrefix("100.64.0.3/32"), [{ ...ALL, destination: OWN }]);
  assert.equal(open.form, "open");
  open.setRules(parsePrefix("100.64.0.3/32"), [{ ...ALL, destination: parsePrefix("192.168.1.0/24") }]);
  assert.equal(open.form, "tracked");
});

test("a prefix that moves between peers counts whichever is told first", () => {
  const open = openTo("100.64.0.2/32");
  const [closed] = prefixes("100.64.0.9/32") as [Prefix];
  open.movePrefixes([], [closed]);
  open.movePrefixes([], [closed]);
  open.movePrefixes([closed], []);
  assert.equal(open.form, "tracked");
  open.movePrefixes([closed], []);
  assert.equal(open.form, "open");
  open.movePrefixes([], [closed]);
  open.movePrefixes([closed], [closed]);
  assert.equal(open.form, "tracked");
});

/** The same asked of everything each time. */
class NaiveSources {
  readonly peers: Prefix[] = [];
  readonly rules = new Map<string, { source: Prefix; rules: readonly SourceRule[] }>();
  otherwise: FilterVerdict = "drop";

  get form(): RuleForm {
    const all = [...this.rules.values()];
    if (all.some(({ rules }) => rules.some(({ verdict }) => verdict === "drop"))) return "tracked";
    if (this.otherwise === "accept") return "open";
    return [false, true].every((v6) => this.#isOpen(v6)) ? "open" : "tracked";
  }

  #isOpen(v6: boolean): boolean {
    const open = [...this.rules.values()].flatMap(({ source, rules }) => {
      const wide = rules.filter(({ protocol, ports }) => protocol === "all" && !ports);
      const places = new Set(wide.map(({ destination: to }) => (to && to.bits > 0 ? formatPrefix(to) : "any")));
      if (places.size === 0 || isV6(source.address) !== v6) return [];
      if (places.has("any")) return [{ source, to: "any" }];
      return places.size === 1 ? [{ source, to: [...places][0]! }] : [];
    });
    if (new Set(open.map(({ to }) => to)).size > 1) return false;
    return this.peers
      .filter(({ address }) => isV6(address) === v6)
      .every((peer) => open.some(({ source }) => source.bits <= peer.bits && prefixContains(source, peer.address)));
  }
}

test("it decides as a look at everything would, over any changes", () => {
  const address = fc.constantFrom("10.0.0.1", "10.0.0.2", "10.0.128.7", "10.200.0.1", "fd00::1", "fd00:0:0:1::1");
  const prefix = fc.tuple(address, fc.constantFrom(0, 8, 9, 17, 32)).map(([text, bits]) => {
    const { address: parsed } = parsePrefix(text);
    return { address: parsed, bits: isV6(parsed) ? bits * 4 : bits };
  });
  const rule: fc.Arbitrary<SourceRule> = fc.record({
    protocol: fc.constantFrom("all" as const, "all" as const, "all" as const, "tcp" as const),
    verdict: fc.constantFrom(...Array<"accept">(12).fill("accept"), "drop" as const),
    ports: fc.option(fc.constant({ first: 1, last: 2 }), { nil: undefined, freq: 6 }),
    destination: fc.option(fc.constantFrom(...prefixes("10.9.9.9/32", "10.9.9.9/0", "10.9.9.8/32")), {
      nil: undefined,
      freq: 3,
    }),
  });
  const step = fc.oneof(
    fc.record({ kind: fc.constant("join" as const), prefixes: fc.array(prefix, { maxLength: 3 }) }),
    fc.record({ kind: fc.constant("leave" as const), at: fc.nat() }),
    fc.record({ kind: fc.constant("rules" as const), source: prefix, rules: fc.array(rule, { maxLength: 2 }) }),
    fc.record({
      kind: fc.constant("otherwise" as const),
      verdict: fc.constantFrom("accept" as const, "drop" as const, "drop" as const),
    }),
  );
  const seen = new Map<RuleForm, number>();
  fc.assert(
    fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
      const open = new OpenSources();
      const naive = new NaiveSources();
      const joined: Prefix[][] = [];
      for (const one of steps) {
        if (one.kind === "join") {
          joined.push(one.prefixes);
          open.movePrefixes([], one.prefixes);
        } else if (one.kind === "leave" && joined.length > 0) {
          open.movePrefixes(joined.splice(one.at % joined.length, 1)[0]!, []);
        } else if (one.kind === "rules") {
          open.setRules(one.source, one.rules);
          naive.rules.set(formatPrefix(maskPrefix(one.source)), one);
        } else if (one.kind === "otherwise") {
          open.otherwise = naive.otherwise = one.verdict;
        }
        naive.peers.splice(0, naive.peers.length, ...joined.flat());
        assert.equal(open.form, naive.form);
        if (naive.peers.length > 0) seen.set(open.form, (seen.get(open.form) ?? 0) + 1);
      }
    }),
    { numRuns: 3000 },
  );
  for (const form of ["open", "tracked"] as const) assert.ok((seen.get(form) ?? 0) > 300, `${form}: ${seen.get(form)}`);
});
