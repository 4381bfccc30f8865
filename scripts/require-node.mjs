// Preloaded with --import before TypeScript is met, because an older Node cannot even say what is wrong with a .ts file.
// Plain JavaScript, and old syntax, for the same reason.

/** Node that the source needs: type stripping and `using` without flags. */
const NEEDED_MAJOR = 24;

const found = process.versions.node;

if (Number(found.split(".")[0]) < NEEDED_MAJOR) {
  process.stderr.write(
    `perch needs Node.js ${NEEDED_MAJOR} or newer, this is ${found} (${process.execPath}).\n` +
      "Run it through npm (npm test, npm run demo), which finds the Node that `npm ci` put into node_modules/.bin;\n" +
      `if that is missing, this platform (${process.platform}-${process.arch}) has no prebuilt one: install Node ${NEEDED_MAJOR} yourself.\n`,
  );
  process.exit(1);
}
