process.env.PERCH_EXTERNAL_DEVICE = "kernel";
await import("../integration/external-device-suites.test.ts");

export {};
