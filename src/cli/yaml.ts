import type { Json } from "./status-json.ts";

/** Words that YAML 1.1 readers take for something else than a text. */
const RESERVED = /^(?:y|n|yes|no|on|off|true|false|null|~|\.inf|\.nan|[-+.\d].*)$/i;
/** Texts that need no quotes anywhere in a block. */
const PLAIN = /^[A-Za-z_/][\w ./@+-]*$/;

/** JSON data as block YAML; texts are quoted (as JSON, which YAML includes) unless they are plainly words. */
export function toYaml(value: Json): string {
  const lines: string[] = [];
  if (isScalar(value)) return `${scalar(value)}\n`;
  writeBlock(lines, value, "");
  return `${lines.join("\n")}\n`;
}

function writeBlock(lines: string[], value: Json, indent: string): void {
  if (Array.isArray(value)) {
    for (const item of value as readonly Json[]) {
      if (isScalar(item)) lines.push(`${indent}- ${scalar(item)}`);
      else {
        // The first line of the item stands beside the dash.
        const start = lines.length;
        writeBlock(lines, item, `${indent}  `);
        lines[start] = `${indent}- ${lines[start]!.slice(indent.length + 2)}`;
      }
    }
    return;
  }
  for (const [name, item] of Object.entries(value as { readonly [name: string]: Json })) {
    if (isScalar(item)) lines.push(`${indent}${scalar(name)}: ${scalar(item)}`);
    else {
      lines.push(`${indent}${scalar(name)}:`);
      writeBlock(lines, item, `${indent}  `);
    }
  }
}

/** Empty lists and maps are written in one line, too. */
function isScalar(value: Json): boolean {
  if (value === null || typeof value !== "object") return true;
  for (const _ in value) return false;
  return true;
}

function scalar(value: Json): string {
  if (Array.isArray(value)) return "[]";
  if (value !== null && typeof value === "object") return "{}";
  if (typeof value !== "string") return String(value);
  return PLAIN.test(value) && !RESERVED.test(value) && !value.endsWith(" ") ? value : JSON.stringify(value);
}
