"""Reads HTML indexes as package managers do, by Python's own parser.

Each line of the input is a document as a JSON string, each line of the output what was found in it: the values of all
`href`s of `<a>`, resolved against the URL that is the argument, and those of `<base>`. A document is read as this
Python does it and as others do, which see text where this one sees tags, or tags where this one sees text.
"""

import json
import sys
import urllib.parse
from html.parser import HTMLParser


class Reader(HTMLParser):
    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.bases = []
        self.links = []

    def handle_starttag(self, tag, attrs):
        hrefs = [value for name, value in attrs if name == "href" and value is not None]
        if tag == "base":
            self.bases += hrefs
        elif tag == "a":
            self.links += hrefs


class Markup(Reader):
    CDATA_CONTENT_ELEMENTS = ()
    RCDATA_CONTENT_ELEMENTS = ()


class Text(Reader):
    CDATA_CONTENT_ELEMENTS = ("script", "style", "title", "textarea", "xmp", "iframe", "noembed", "noframes", "noscript")


def resolved(link):
    try:
        return urllib.parse.urljoin(sys.argv[1], link)
    except ValueError:
        return "unreadable:"


for line in sys.stdin:
    bases, links = [], []
    for kind in (Reader, Markup, Text):
        reader = kind()
        reader.feed(json.loads(line))
        reader.close()
        bases += reader.bases
        links += [resolved(link) for link in reader.links]
    print(json.dumps({"bases": bases, "links": links}))
