package main

import (
	"flag"
	"strings"
	"time"
)

// options are those of a run.
type options struct {
	lasts     time.Duration // 0: each fault once
	retention time.Duration
	silence   time.Duration // after which a worker counts as lost; 0: the default of the services
	seed      uint64
	patients  int
	only      []string // names of faults; none: all
	bin       string
	keep      string // folder for the logs of the services, "" to keep none
	soak      string // file for the chart of a soak; "" to break things
}

// parseFlags reads the command line. With list the faults are to be listed, and nothing is run.
func parseFlags() (opts options, list bool) {
	opts = options{lasts: 10 * time.Minute, patients: 60, retention: 2 * time.Minute, bin: "bin"}
	var hours float64
	var only string
	flag.BoolVar(&list, "list", false, "list the faults and exit")
	flag.DurationVar(&opts.lasts, "for", opts.lasts, "how long things break")
	flag.Float64Var(&hours, "hours", 0, "the same in hours")
	flag.Uint64Var(&opts.seed, "seed", 0, "repeats the choices of an earlier run; 0: new ones")
	flag.IntVar(&opts.patients, "patients", opts.patients, "patients of the population, at least 20")
	flag.DurationVar(&opts.retention, "retention", opts.retention, "how long ended jobs are kept")
	flag.StringVar(&only, "faults", "", "names of the only faults, separated by commas")
	flag.StringVar(&opts.bin, "bin", opts.bin, "folder of the services")
	flag.StringVar(&opts.keep, "keep", "", "existing folder for the logs of the services")
	flag.StringVar(&opts.soak, "soak", "", "break nothing, and draw what is used into this SVG file")
	flag.Parse()
	if hours > 0 {
		opts.lasts = time.Duration(hours * float64(time.Hour))
	}
	if opts.seed == 0 {
		opts.seed = uint64(time.Now().UnixNano()) //nolint:gosec // any will do
	}
	if only != "" {
		opts.only = strings.Split(only, ",")
	}
	return opts, list
}
