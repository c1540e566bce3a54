// Reads vitest's JSON report. Prints the counts on one line; with --files, fails when a test file on disk is not in it.
import * as fs from "node:fs"
import * as path from "node:path"

const [reportFile, mode] = process.argv.slice(2)
const report = JSON.parse(fs.readFileSync(reportFile, "utf8"))

if (mode === "--files") {
  const root = path.resolve(import.meta.dirname, "..", "test")
  const ran = new Set(report.testResults.map((result) => path.resolve(result.name)))
  const onDisk = fs.readdirSync(root, { recursive: true })
    .map((name) => path.join(root, name))
    .filter((file) => /\.(test|spec)\.[cm]?[jt]sx?$/.test(file))
  const left = onDisk.filter((file) => !ran.has(file))
  if (left.length > 0) {
    console.error(`No test run collected:\n${left.join("\n")}`)
    process.exit(1)
  }
  console.log(`${onDisk.length} of ${onDisk.length} test files`)
} else {
  // A file that broke before its first test holds no failed test; it counts as one.
  const broken = report.testResults.filter((file) =>
    file.status === "failed" && !file.assertionResults.some((test) =>
      test.status === "failed"
    )
  ).length
  const failed = report.numFailedTests + broken
  console.log(
    `${report.numPassedTests} passed, ${failed} failed, ${report.numPendingTests + report.numTodoTests} skipped`
  )
}
