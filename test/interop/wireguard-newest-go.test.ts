import { WIREGUARD_GO } from "../../lab/foreign-program.ts";
import { describeJudge } from "./wireguard-judge-suite.ts";

await describeJudge(WIREGUARD_GO, ["-f"]);
