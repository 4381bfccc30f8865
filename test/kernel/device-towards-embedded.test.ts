import { deviceSuite } from "../integration/device-compliance/device-suite.ts";

deviceSuite("kernel", "embedded");
