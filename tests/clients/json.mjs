// Reads the documents of an npm registry as npm does. Each line of the input is a document as a JSON string, each line of
// the output the tarballs that npm would fetch, or null where it is no JSON.
import { createInterface } from 'node:readline'

const tarballs = (document) => {
  const versions = [document, ...[document, document?.policyRestrictions].flatMap((part) => Object.values(part?.versions ?? {}))]
  const named = versions.flatMap((version) => [version?.dist?.tarball, version?._resolved])
  // A list that is used as a string is one.
  return named.filter((tarball) => tarball).map(String)
}

for await (const line of createInterface({ input: process.stdin, crlfDelay: Infinity })) {
  let document
  try {
    document = JSON.parse(JSON.parse(line))
  } catch {
    console.log('null')
    continue
  }
  console.log(JSON.stringify(tarballs(document)))
}
