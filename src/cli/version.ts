import { readFileSync } from "node:fs";
import { Command } from "commander";
import { print } from "./terminal.ts";

/** The version in package.json. */
export function perchVersion(): string {
  const text = readFileSync(new URL("../../package.json", import.meta.url), "utf8");
  return (JSON.parse(text) as { readonly version: string }).version;
}

export function versionCommand(): Command {
  return new Command("version").description("print the version of this Perch").action(() => print(perchVersion()));
}
