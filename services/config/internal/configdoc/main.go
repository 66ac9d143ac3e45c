// Command configdoc writes the table of settings in docs/configuration.md, from the config structs of the services:
//
//	go run ./services/config/internal/configdoc FILE
//
// It runs in the root of the repository. Names and defaults come from the struct tags, the texts from the
// fields' comments.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
)

const begin, end = "<!-- settings: written by make gen -->\n", "<!-- end of settings -->\n"

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "configdoc:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 1 {
		return errors.New("usage: configdoc FILE")
	}
	page, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	before, rest, found := bytes.Cut(page, []byte(begin))
	_, after, ended := bytes.Cut(rest, []byte(end))
	if !found || !ended {
		return fmt.Errorf("%s does not have the lines %q and %q", args[0], begin, end)
	}
	rows, err := table("services", "api", "auth", "worker", "scheduler")
	if err != nil {
		return err
	}
	page = bytes.Join([][]byte{before, []byte(begin), rows, []byte(end), after}, nil)
	return os.WriteFile(args[0], page, 0o600)
}
