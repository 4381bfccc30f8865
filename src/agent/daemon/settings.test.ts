import assert from "node:assert/strict";
import { test } from "node:test";
import { DaemonError } from "./daemon-error.ts";
import {
  checkSettings,
  checkSetupKey,
  formatDuration,
  parseDuration,
  resolveSettings,
  SETTINGS,
  type SettingLayers,
  type SettingName,
  type SettingSource,
  settingsFromEnvironment,
  showSetting,
  variablesOf,
} from "./settings.ts";

const refuse = (error: DaemonError): never => {
  throw error;
};

test("a flag beats the environment, which beats the stored setting, which beats the default", () => {
  const table: readonly (readonly [SettingLayers, SettingName, unknown, SettingSource | undefined])[] = [
    [{}, "mtu", 1280, "default"],
    [{ setting: { mtu: 1300 } }, "mtu", 1300, "setting"],
    [{ setting: { mtu: 1300 }, environment: { mtu: 1310 } }, "mtu", 1310, "environment"],
    [{ setting: { mtu: 1300 }, environment: { mtu: 1310 }, flag: { mtu: 1320 } }, "mtu", 1320, "flag"],
    [{ setting: { mtu: 1300 }, flag: { mtu: 1320 } }, "mtu", 1320, "flag"],
    [{ flag: { lazy: false }, environment: { lazy: true }, setting: { lazy: true } }, "lazy", false, "flag"],
    [{ environment: { lazy: false }, setting: { lazy: true } }, "lazy", false, "environment"],
    [{ setting: { lazy: false } }, "lazy", false, "setting"],
    [{}, "lazy", undefined, undefined],
    [{}, "managementUrl", undefined, undefined],
    [{ flag: { presharedKey: "" }, setting: { presharedKey: "x" } }, "presharedKey", undefined, undefined],
  ];
  for (const [layers, name, value, source] of table) {
    const found = resolveSettings(layers).get(name);
    assert.deepEqual([found?.value, found?.source], [value, source], JSON.stringify(layers));
  }
});

test("the lazy switch reads its names in order, the newest first and PERCH before NB", () => {
  const names = [
    "PERCH_LAZY_CONN",
    "NB_LAZY_CONN",
    "PERCH_ENABLE_LAZY_CONNECTION",
    "NB_ENABLE_LAZY_CONNECTION",
    "PERCH_ENABLE_EXPERIMENTAL_LAZY_CONN",
    "NB_ENABLE_EXPERIMENTAL_LAZY_CONN",
  ];
  assert.deepEqual(variablesOf("lazy"), names);
  for (const [index, name] of names.entries()) {
    const later = Object.fromEntries(names.slice(index + 1).map((other) => [other, "false"]));
    assert.equal(settingsFromEnvironment({ ...later, [name]: "true" }, refuse).lazy, true, name);
  }
});

test("the lazy switch knows on, off and boolean words in any case", () => {
  for (const word of ["on", "ON", "true", "True", "1"])
    assert.equal(settingsFromEnvironment({ NB_LAZY_CONN: ` ${word} ` }, refuse).lazy, true, word);
  for (const word of ["off", "Off", "false", "0"])
    assert.equal(settingsFromEnvironment({ PERCH_LAZY_CONN: word }, refuse).lazy, false, word);
});

test("a wrong variable is named and counts as absent", () => {
  const problems: string[] = [];
  const values = settingsFromEnvironment(
    { NB_LAZY_CONN: "perhaps", PERCH_MTU: "9000", NB_WIREGUARD_PORT: "51821" },
    (error) => problems.push(error.message),
  );
  assert.deepEqual(values, { wireguardPort: 51821 });
  assert.deepEqual(problems, [
    "PERCH_MTU must be 576 to 8192, got 9000",
    'NB_LAZY_CONN must be true or false, got "perhaps"',
  ]);
});

test("an empty variable is no value", () => {
  assert.deepEqual(settingsFromEnvironment({ PERCH_MTU: "", NB_MTU: "1400" }, refuse), { mtu: 1400 });
});

test("each limit is held, and the message names the value and the limit", () => {
  const wrong: readonly (readonly [SettingName, string, RegExp])[] = [
    ["managementUrl", "vpn.example.com", /--x must be http:\/\/HOST.* got "vpn.example.com"/],
    ["managementUrl", "ftp://vpn.example.com", /must be http/],
    [
      "managementUrl",
      "https://user:secret@vpn.example.com",
      /must not hold a user name or password \(host vpn.example.com\)$/,
    ],
    ["hostname", "", /1 to 253 bytes, got 0/],
    ["hostname", "two words", /spaces or slashes, got "two words"/],
    ["interfaceName", "perch-with-a-long-name", /1 to 15 bytes, got "perch-with-a-long-name"/],
    ["interfaceName", "a/b", /slashes/],
    ["interfaceName", "..", /got "\.\."/],
    ["wireguardPort", "65536", /must be 0 to 65535, got 65536/],
    ["wireguardPort", "-1", /whole number 0 to 65535, got "-1"/],
    ["wireguardPort", "51820x", /whole number/],
    ["mtu", "575", /576 to 8192, got 575/],
    ["mtu", "8193", /576 to 8192, got 8193/],
    ["mtu", "1e3", /whole number/],
    ["device", "openvpn", /embedded, kernel, wireguard-go, auto, got "openvpn"/],
    ["presharedKey", "c2hvcnQ=", /44 characters of base64 \(32 bytes\), got 8 characters/],
    ["lazy", "maybe", /true or false, got "maybe"/],
    ["inactivityThreshold", "30s", /must be 1m to 365d, got 30s/],
    ["inactivityThreshold", "soon", /duration such as 15m, 90s or 1h30m, got "soon"/],
  ];
  for (const [name, text, message] of wrong) {
    assert.throws(
      () => SETTINGS[name].parse(text, "--x"),
      (error) => error instanceof DaemonError && error.code === "value-invalid" && message.test(error.message),
      `${name} ${text}`,
    );
  }
});

test("values from the API are held against the same limits", () => {
  assert.throws(() => checkSettings({ mtu: 12 }), /--mtu must be 576 to 8192, got 12/);
  assert.throws(() => checkSettings({ wireguardPort: 1.5 }), /--wireguard-port/);
  assert.throws(() => checkSettings({ inactivityThreshold: Number.NaN }), /--inactivity-threshold/);
  assert.deepEqual(checkSettings({ mtu: 1400, lazy: undefined }), { mtu: 1400 });
});

test("a setup key is a UUID, and a wrong one is not printed", () => {
  const key = "A2C8E62B-38F5-4553-B31E-DD66C696CEBB";
  assert.equal(checkSetupKey(key, "--setup-key"), key);
  assert.equal(checkSetupKey(key.toLowerCase(), "--setup-key"), key.toLowerCase());
  const wrong = "A2C8E62B-38F5-4553-B31E-DD66C696CEB";
  assert.throws(
    () => checkSetupKey(wrong, "--setup-key"),
    (error) =>
      error instanceof DaemonError &&
      /got "A2C8…" of 35 characters/.test(error.message) &&
      !error.message.includes("38F5"),
  );
  assert.throws(
    () => checkSetupKey("secret", "the key in key.txt"),
    /the key in key.txt must be a UUID .* got a text of 6 characters/,
  );
});

test("durations are read with units, bare numbers as minutes, and written the shortest way", () => {
  const table: readonly (readonly [string, number, string])[] = [
    ["15", 900_000, "15m"],
    ["90s", 90_000, "1m30s"],
    ["1h30m", 5_400_000, "1h30m"],
    ["1.5h", 5_400_000, "1h30m"],
    ["2d", 172_800_000, "2d"],
    ["1500ms", 1500, "1s500ms"],
  ];
  for (const [text, ms, written] of table) {
    assert.equal(parseDuration(text, "--x"), ms, text);
    assert.equal(formatDuration(ms), written);
  }
  for (const text of ["", "m", "5 m", "-5m", "5mm", "1e3s"]) assert.throws(() => parseDuration(text, "--x"), text);
});

test("a secret is shown as set", () => {
  assert.equal(showSetting("presharedKey", "AAAA"), "set");
  assert.equal(showSetting("mtu", 1280), "1280");
});
