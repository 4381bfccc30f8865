process.env.PERCH_EXTERNAL_DEVICE = "kernel";
await import("../integration/external-device.test.ts");

// Its own module: a file is one.
export {};
