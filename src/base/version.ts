/** Version of Perch, equal to package.json's (a test holds that). */
export const PERCH_VERSION = "0.1.0";

/**
 * The version reported on the wire. Servers and agents derive abilities from it by semver, so it names the protocol level
 * that Perch implements, without a suffix (management document, section 7.3).
 */
export const PROTOCOL_VERSION = "0.76.0";
