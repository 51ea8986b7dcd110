# Package indexes like real ones: kind (npm, pypi, helm), versions, origin (URL without a final slash).

function hex(digits,   text) {
  while (digits-- > 0) text = text substr("0123456789abcdef", int(rand() * 16) + 1, 1)
  return text
}

function base64(digits,   text) {
  while (digits-- > 0)
    text = text substr("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", int(rand() * 64) + 1, 1)
  return text
}

function version(n) { return int(n / 100) "." int(n / 10) % 10 "." n % 10 }

function date(n) { return sprintf("20%02d-%02d-%02dT%02d:17:%02d.123Z", 12 + n % 13, 1 + n % 12, 1 + n % 28, n % 24, n % 60) }

function npm(   n, v) {
  printf "{\"_id\":\"demo\",\"_rev\":\"%s\",\"name\":\"demo\",\"description\":\"A demo\",\"dist-tags\":{\"latest\":\"%s\"},\"versions\":{", hex(32), version(versions - 1)
  for (n = 0; n < versions; n++) {
    v = version(n)
    printf "%s\"%s\":{\"name\":\"demo\",\"version\":\"%s\",\"description\":\"A package that shows how large the index of one that is released often becomes\",\"main\":\"lib/index.js\",\"license\":\"MIT\",\"homepage\":\"https://demo.example/\",", n ? "," : "", v, v
    printf "\"repository\":{\"type\":\"git\",\"url\":\"git+https://git.example/demo/demo.git\"},\"bugs\":{\"url\":\"https://git.example/demo/demo/issues\"},\"engines\":{\"node\":\">=%d\"},", 8 + n % 14
    printf "\"scripts\":{\"test\":\"mocha --reporter spec --check-leaks test/\",\"lint\":\"eslint .\"},\"dependencies\":{\"accepts\":\"~1.3.%d\",\"cookie\":\"0.%d.0\",\"debug\":\"2.6.9\",\"qs\":\"6.%d.0\",\"send\":\"0.18.0\"},\"devDependencies\":{\"mocha\":\"10.2.0\",\"eslint\":\"8.%d.0\"},", n % 9, n % 7, n % 12, n % 50
    printf "\"_npmUser\":{\"name\":\"demo\",\"email\":\"demo@demo.example\"},\"maintainers\":[{\"name\":\"demo\",\"email\":\"demo@demo.example\"}],\"gitHead\":\"%s\",", hex(40)
    printf "\"dist\":{\"shasum\":\"%s\",\"tarball\":\"%s/npm/demo/-/demo-%s.tgz\",\"fileCount\":%d,\"integrity\":\"sha512-%s==\",", hex(40), origin, v, 10 + n % 30, base64(86)
    printf "\"signatures\":[{\"sig\":\"MEUCIQ%s\",\"keyid\":\"SHA256:%s\"}],\"unpackedSize\":%d}}", base64(90), base64(43), 100000 + n
  }
  printf "},\"time\":{\"created\":\"%s\",\"modified\":\"%s\"", date(0), date(versions)
  for (n = 0; n < versions; n++) printf ",\"%s\":\"%s\"", version(n), date(n)
  printf "},\"readme\":\"# demo\",\"maintainers\":[{\"name\":\"demo\",\"email\":\"demo@demo.example\"}]}"
}

function pypi(   n, f, file) {
  print "<!DOCTYPE html>\n<html>\n  <head>\n    <meta name=\"pypi:repository-version\" content=\"1.3\">\n    <title>Links for demo</title>\n  </head>\n  <body>\n    <h1>Links for demo</h1>"
  for (n = 0; n < versions; n++)
    for (f = 0; f < 3; f++) {
      file = "demo-" version(n) (f == 0 ? ".tar.gz" : f == 1 ? "-cp312-cp312-manylinux_2_17_x86_64.whl" : "-cp312-cp312-win_amd64.whl")
      printf "    <a href=\"%s/pypi/packages/%s/%s/%s/%s#sha256=%s\" data-requires-python=\"&gt;=3.%d\" data-dist-info-metadata=\"sha256=%s\" data-core-metadata=\"sha256=%s\">%s</a><br />\n", origin, hex(2), hex(2), hex(60), file, hex(64), 6 + n % 8, hex(64), hex(64), file
    }
  print "  </body>\n</html>"
}

function helm(   n, v) {
  print "apiVersion: v1\nentries:\n  demo:"
  for (n = 0; n < versions; n++) {
    v = version(n)
    print "  - annotations:\n      category: Infrastructure\n      licenses: Apache-2.0\n    apiVersion: v2\n    appVersion: " v
    print "    created: \"" date(n) "\"\n    dependencies:\n    - name: common\n      repository: oci://registry.example/charts\n      tags:\n      - demo-common\n      version: 2.x.x"
    print "    description: A chart that shows how large the index of a repository becomes that keeps every release of its charts.\n    digest: " hex(64) "\n    home: https://demo.example\n    icon: https://demo.example/icon.png"
    print "    keywords:\n    - demo\n    - infrastructure\n    maintainers:\n    - email: demo@demo.example\n      name: demo\n    name: demo\n    sources:\n    - https://git.example/charts/tree/main/demo\n    urls:"
    print "    - " origin "/helm/demo-" v ".tgz\n    version: " v
  }
  print "generated: \"" date(versions) "\""
}

BEGIN {
  srand(11)
  if (kind == "npm") npm()
  else if (kind == "pypi") pypi()
  else helm()
}
