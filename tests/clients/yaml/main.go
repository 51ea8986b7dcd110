// Reads the indexes of chart repositories as Helm does. Each line of the input is a document as a JSON string, each line
// of the output the URLs of its charts in the order of the charts' names, or null where Helm does not read it.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"sort"

	"sigs.k8s.io/yaml"
)

type index struct {
	Entries map[string][]*struct {
		URLs []string `json:"urls"`
	} `json:"entries"`
}

func read(document []byte) []string {
	var found index
	var err error
	if json.Valid(document) {
		err = json.Unmarshal(document, &found)
	} else {
		err = yaml.Unmarshal(document, &found)
	}
	if err != nil {
		return nil
	}
	names := []string{}
	for name := range found.Entries {
		names = append(names, name)
	}
	sort.Strings(names)
	urls := []string{}
	for _, name := range names {
		for _, version := range found.Entries[name] {
			if version != nil {
				urls = append(urls, version.URLs...)
			}
		}
	}
	return urls
}

func main() {
	input := bufio.NewReader(os.Stdin)
	decoder := json.NewDecoder(input)
	output := bufio.NewWriter(os.Stdout)
	defer output.Flush()
	for decoder.More() {
		var document string
		if err := decoder.Decode(&document); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		line, _ := json.Marshal(read([]byte(document)))
		fmt.Fprintf(output, "%s\n", line)
	}
}
