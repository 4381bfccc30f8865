import { test } from "node:test";
import { root } from "./data-plane/checks.ts";
import { deviceSuite } from "./device-compliance/device-suite.ts";

if ("skip" in root) test("device compliance", root, () => {});
else deviceSuite("embedded", "embedded");
