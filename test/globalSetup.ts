/** Stops the run on a Node older than the library supports, instead of letting suites fail one by one. */
export default function setup() {
  const [major = 0] = process.versions.node.split(".").map(Number)
  if (major < 24) {
    throw new Error(
      `Tests run on Node 24, this is ${process.version}. Run \`npm ci\`, then \`npm test\`: npm puts Node 24 first.`
    )
  }
}
