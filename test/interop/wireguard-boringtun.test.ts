import { BORINGTUN } from "../../lab/foreign-program.ts";
import { describeJudge } from "./wireguard-judge-suite.ts";

// Without root it could not be configured: it has the tests' own rights.
await describeJudge(BORINGTUN, ["--foreground", "--disable-drop-privileges"]);
