package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
)

type options struct {
	patients, rounds              int
	records, objects              int
	only, binaries, json, profile string
}

// bench is one run: the servers, the populations, and the results so far.
type bench struct {
	options
	servers     servers
	dir         string // of everything that the run writes
	populations map[int]population
	report      report
}

// section is a part of the report.
type section struct {
	name    string
	measure func(*bench, context.Context) error
	named   bool // measured only if it is named: it is about load, and may take long
}

// sections are measured in this order.
var sections = []section{
	{"throughput", (*bench).throughput, false},
	{"fairness", (*bench).fairness, false},
	{"cohorts", (*bench).cohorts, false},
	{"recovery", (*bench).recovery, false},
	{"api", (*bench).api, false},
	{"flood", (*bench).flood, false},
	{"memory", (*bench).memory, false},
	{"costs", (*bench).costs, false},
	{"crowd", (*bench).crowd, true},
	{"records", (*bench).records, true},
	{"fleet", (*bench).fleet, true},
	{"downloads", (*bench).downloads, true},
	{"sweep", (*bench).sweep, true},
	{"parameters", (*bench).parameters, false}, // last: it changes the population
}

func run(ctx context.Context, opts options, out io.Writer) (err error) {
	var wanted []string
	for name := range strings.SplitSeq(opts.only, ",") {
		if name == "" {
			continue
		}
		if !slices.ContainsFunc(sections, func(s section) bool { return s.name == name }) {
			return fmt.Errorf("there is no section %q", name)
		}
		wanted = append(wanted, name)
	}
	if opts.rounds < 1 || opts.patients < 160 {
		return errors.New("at least 1 round and 160 patients are required")
	}
	if opts.records < 1 || opts.objects < 1 {
		return errors.New("--records and --objects must be positive")
	}
	b := &bench{options: opts, populations: map[int]population{}}
	if b.servers, err = findServers(); err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp("", "sluice-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	b.report.Machine = machine()
	for _, section := range sections {
		if !slices.Contains(wanted, section.name) && (len(wanted) > 0 || section.named) {
			continue
		}
		began := time.Now()
		say("== %s", section.name)
		if err := section.measure(b, ctx); err != nil {
			return fmt.Errorf("%s: %w", section.name, err)
		}
		say("%s took %.0f s", section.name, time.Since(began).Seconds())
	}
	if err := b.report.print(out); err != nil {
		return err
	}
	if opts.json == "" {
		return nil
	}
	text, err := json.MarshalIndent(b.report, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(opts.json, append(text, '\n'), 0o644)
}

func say(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
