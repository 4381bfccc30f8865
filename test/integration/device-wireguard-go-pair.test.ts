import { test } from "node:test";
import { missingForLab } from "../interop/wireguard-lab.ts";
import { deviceSuite } from "./device-compliance/device-suite.ts";

const missing = missingForLab();
if (missing) test("device compliance", { skip: missing }, () => {});
else deviceSuite("wireguard-go", "wireguard-go");
