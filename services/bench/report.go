package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
)

// report holds the results of a run. Megabytes are 10^6 bytes of uncompressed NDJSON unless a comment says otherwise, MiB
// are of resident memory, and a list has one figure per round.
type report struct {
	Machine    machineFigures      `json:"machine"`
	Loads      []loadFigures       `json:"loads"`
	Throughput []throughputFigures `json:"throughput,omitempty"`
	Parameters []parameterFigures  `json:"parameters,omitempty"`
	Fairness   fairnessFigures     `json:"fairness,omitzero"`
	Cohorts    []cohortFigures     `json:"cohorts,omitempty"`
	Recovery   recoveryFigures     `json:"recovery,omitzero"`
	API        apiFigures          `json:"api,omitzero"`
	Flood      floodFigures        `json:"flood,omitzero"`
	Memory     memoryFigures       `json:"memory,omitzero"`
	Costs      costFigures         `json:"costs,omitzero"`
	Crowd      crowdFigures        `json:"crowd,omitzero"`
	Records    recordFigures       `json:"records,omitzero"`
	Fleet      fleetFigures        `json:"fleet,omitzero"`
	Downloads  slowFigures         `json:"downloads,omitzero"`
	Sweep      sweepFigures        `json:"sweep,omitzero"`
}

type machineFigures struct {
	Processor string  `json:"processor"`
	Cores     int     `json:"cores"`
	MemoryGiB float64 `json:"memory_gib"`
	System    string  `json:"system"`
	Go        string  `json:"go"`
}

type loadFigures struct {
	Patients  int     `json:"patients"`
	Resources int64   `json:"resources"`
	Megabytes float64 `json:"megabytes"`
	Seconds   float64 `json:"seconds"`
}

type throughputFigures struct {
	Workers     int       `json:"workers"`
	Resources   int64     `json:"resources"`
	Megabytes   float64   `json:"megabytes"`
	Ceiling     []float64 `json:"ceiling_mb_per_second"`
	Rate        []float64 `json:"export_mb_per_second"` // from kick-off to 200
	Ratio       []float64 `json:"ratio_to_ceiling"`     // of the pair
	FirstStored []float64 `json:"first_file_stored_seconds"`
	FirstByte   []float64 `json:"first_byte_at_client_seconds"` // the manifest appears when all files are complete
	WorkerPeak  []float64 `json:"worker_peak_mib"`              // of each worker
	APIPeak     float64   `json:"api_peak_mib"`
}

type fairnessFigures struct {
	Alone     []float64 `json:"alone_seconds"`
	UnderLoad []float64 `json:"under_load_seconds"`
	Ratio     float64   `json:"ratio_of_medians"`
}

type cohortFigures struct {
	Times     int       `json:"times"`
	Patients  int       `json:"patients"`
	Megabytes float64   `json:"megabytes"`
	Seconds   []float64 `json:"seconds"`
}

type recoveryFigures struct {
	Claimed []float64 `json:"claimed_elsewhere_after_seconds"` // of each unit that the killed worker held
	Export  float64   `json:"export_seconds"`
}

type apiFigures struct {
	KickOffs callFigures `json:"kick_offs"`
	Polls    callFigures `json:"status_polls"`
	Direct   []float64   `json:"minio_direct_mb_per_second"` // gzipped bytes
	Stored   []float64   `json:"api_gzip_mb_per_second"`     // gzipped bytes
	Unpacked []float64   `json:"api_identity_mb_per_second"`
}

type callFigures struct {
	Calls  uint64  `json:"calls"`
	AtOnce int     `json:"at_once"`
	Rate   float64 `json:"per_second"`
	P50    float64 `json:"p50_milliseconds"`
	P99    float64 `json:"p99_milliseconds"`
}

type floodFigures struct {
	Rate     []float64 `json:"flood_per_second"`
	Accepted int       `json:"flood_accepted"` // the most of one round
	Alone    []float64 `json:"neighbours_alone_p99_milliseconds"`
	Beside   []float64 `json:"neighbours_beside_p99_milliseconds"`
	Ratio    []float64 `json:"ratio_of_p99"`
	Kept     []float64 `json:"redis_bytes_of_a_subject"` // for its limits
}

type memoryFigures struct {
	WaitingJob  float64 `json:"waiting_job_bytes"` // with its task in the queue
	CompleteJob float64 `json:"complete_job_bytes"`
	SmallFiles  int     `json:"complete_job_files"`
	File        float64 `json:"further_file_bytes"` // with its unit
	Files       int     `json:"files"`
}

func median(figures []float64) float64 {
	if len(figures) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(figures))
	middle := len(sorted) / 2
	if len(sorted)%2 == 0 {
		return (sorted[middle-1] + sorted[middle]) / 2
	}
	return sorted[middle]
}

// spread formats the median, with the minimum and the maximum in parentheses.
func spread(figures []float64, digits int) string {
	if len(figures) == 0 {
		return "-"
	}
	return fmt.Sprintf("%.*f (%.*f to %.*f)", digits, median(figures), digits, slices.Min(figures),
		digits, slices.Max(figures))
}

func list(figures []float64, format string) string {
	texts := make([]string, len(figures))
	for i, figure := range figures {
		texts[i] = fmt.Sprintf(format, figure)
	}
	return strings.Join(texts, ", ")
}

// print writes the report as a table: medians, with the minimum and the maximum of all rounds.
func (r *report) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := func(what, format string, args ...any) { fmt.Fprintf(w, "%s\t%s\n", what, fmt.Sprintf(format, args...)) }
	row("what", "median (minimum to maximum)")
	row("----", "----")
	row("machine", "%s, %d cores, %.0f GiB, %s, %s", r.Machine.Processor, r.Machine.Cores, r.Machine.MemoryGiB,
		r.Machine.System, r.Machine.Go)
	for _, l := range r.Loads {
		row(fmt.Sprintf("load of %d patients", l.Patients), "%d resources, %.0f MB in %.1f s: %.0f resources/s",
			l.Resources, l.Megabytes, l.Seconds, float64(l.Resources)/l.Seconds)
	}
	for _, t := range r.Throughput {
		name := fmt.Sprintf("%d worker(s): ", t.Workers)
		row(name+"ceiling, MB/s", "%s", spread(t.Ceiling, 0))
		row(name+"export from kick-off to 200, MB/s", "%s", spread(t.Rate, 0))
		row(name+"resources/s", "%.0f", median(t.Rate)/t.Megabytes*float64(t.Resources))
		row(name+"ratio to the ceiling", "%s", spread(t.Ratio, 2))
		row(name+"first file in the store, s", "%s", spread(t.FirstStored, 2))
		row(name+"first byte at a client, s", "%s", spread(t.FirstByte, 2))
		row(name+"peak memory of each worker, MiB", "%s", list(t.WorkerPeak, "%.0f"))
		row(name+"peak memory of the API, MiB", "%.0f", t.APIPeak)
	}
	for _, p := range r.Parameters {
		row(p.Name+", s", "%s, beside %s for %d resources", spread(p.Seconds, 2), spread(p.Whole, 2), p.Of)
		row(p.Name+": resources, times as fast as the whole", "%d, %s", p.Resources, spread(p.Ratio, 2))
	}
	if f := r.Fairness; len(f.Alone) > 0 {
		row("ten patients, alone, s", "%s", spread(f.Alone, 2))
		row("ten patients, during the population's export, s", "%s", spread(f.UnderLoad, 2))
		row("ratio of the two", "%.1f", f.Ratio)
	}
	for _, c := range r.Cohorts {
		row(fmt.Sprintf("a hundred patients of %d (%dx), s", c.Patients, c.Times), "%s", spread(c.Seconds, 2))
	}
	if n := len(r.Cohorts); n > 1 {
		row("ratio of the largest to the smallest population", "%.2f",
			median(r.Cohorts[n-1].Seconds)/median(r.Cohorts[0].Seconds))
	}
	if f := r.Recovery; len(f.Claimed) > 0 {
		row("units of a killed worker run elsewhere after, s", "%s", list(f.Claimed, "%.1f"))
		row("that export, kick-off to 200, s", "%.1f", f.Export)
	}
	if f := r.API; f.KickOffs.Calls > 0 {
		for _, c := range []struct {
			name string
			callFigures
		}{{"kick-offs", f.KickOffs}, {"status polls", f.Polls}} {
			row(c.name, "%.0f/s, p50 %.1f ms, p99 %.1f ms (%d calls, %d at once)", c.Rate, c.P50, c.P99, c.Calls, c.AtOnce)
		}
		row("download from MinIO, gzipped MB/s", "%s", spread(f.Direct, 0))
		row("download through the API, gzipped MB/s", "%s", spread(f.Stored, 0))
		row("download through the API, decompressed, MB/s", "%s", spread(f.Unpacked, 0))
	}
	if f := r.Flood; len(f.Alone) > 0 {
		row("kick-offs of one flooding subject, per second", "%s", spread(f.Rate, 0))
		row("accepted of its 10,000", "%d", f.Accepted)
		row("p99 of other subjects' kick-offs, alone, ms", "%s", spread(f.Alone, 1))
		row("p99 of other subjects' kick-offs, during the flood, ms", "%s", spread(f.Beside, 1))
		row("ratio of the two", "%s", spread(f.Ratio, 2))
		row("Redis, limits of a subject, bytes", "%s", spread(f.Kept, 0))
	}
	if f := r.Memory; f.WaitingJob > 0 {
		row("Redis, a job that waits, bytes", "%.0f", f.WaitingJob)
		row("Redis, a complete job, bytes", "%.0f (%d files)", f.CompleteJob, f.SmallFiles)
		row("Redis, each further file, bytes", "%.0f (of %d)", f.File, f.Files)
	}
	if f := r.Costs; f.Units > 0 {
		row("costs: units, files, MB, MB stored, seconds", "%d, %d, %.0f, %.0f, %.1f",
			f.Units, f.Files, f.Megabytes, f.Stored, f.Seconds)
		row("costs: Redis, idle, commands per second, of a processor", "%.0f, %.3f", f.IdleCommands, f.IdleCPU)
		row("costs: Redis, of a unit, commands, processor", "%.0f, %.2f ms", f.Commands, f.CPU)
		row("costs: Redis, of a unit of a complete job", "%.0f bytes", f.Kept)
		row("costs: object store, of a unit, requests, writes", "%.1f, %.1f", f.Requests, f.Writes)
	}
	r.printLoad(row)
	return w.Flush()
}

// printLoad writes the sections for load.
func (r *report) printLoad(row func(what, format string, args ...any)) {
	if f := r.Crowd; len(f.Rate) > 0 {
		row("crowd: jobs of ten patients, of the population, workers", "%d, %d, %d", crowdSmall, crowdLarge, crowdWorkers)
		row("crowd: MB/s, jobs/s", "%s, %s", spread(f.Rate, 0), spread(f.Jobs, 1))
		row("crowd: jobs of ten patients per second, until their last", "%s", spread(f.SmallJobs, 1))
		row("crowd: the same without jobs of the population", "%s", spread(f.SmallOnly, 1))
		row("crowd: ratio of the two", "%s", spread(f.SmallRatio, 2))
		row("crowd: p99 of kick-off, of status, ms", "%s, %s", spread(f.KickOff, 1), spread(f.Status, 1))
		row("crowd: ten patients, alone, s", "%s", spread(f.Alone, 2))
		row("crowd: ten patients, median and worst, s", "%s, %s", spread(f.Median, 2), spread(f.Worst, 2))
		row("crowd: ratio to alone, median and worst", "%s, %s", spread(f.Ratio, 1), spread(f.WorstRatio, 1))
		row("crowd: progress of the population's jobs by then, %", "%s", spread(f.Population, 0))
	}
	if f := r.Records; f.Held > 0 {
		row("records: jobs kept, files of each, Redis, bytes of each", "%d, %d, %.0f", f.Held, f.Files, f.Bytes)
		for _, p := range f.Passes {
			row("records: "+p.Name+" with few jobs, with all, ms", "%s, %s: %.4f of its interval of %.0f s",
				spread(p.Few, 1), spread(p.Many, 1), median(p.Many)/1000/p.Every, p.Every)
		}
		row("records: p99 of status with few jobs, with all, ms", "%s, %s", spread(f.Few, 1), spread(f.Many, 1))
		row("records: ratio of the two", "%s", spread(f.Ratio, 2))
	}
	if f := r.Fleet; f.Workers > 0 {
		row("fleet: workers, connections of Redis", "%d, %s", f.Workers, spread(f.Connections, 0))
		row("fleet: calls/s, commands/s with those in scripts", "%s, %s", spread(f.Calls, 0), spread(f.Commands, 0))
		row("fleet: p99 of heartbeat, claim, commit, ms", "%s, %s, %s",
			spread(f.Heartbeat, 1), spread(f.Claim, 1), spread(f.Commit, 1))
		row("fleet: ceiling, calls/s of an empty script", "%s", spread(f.Ceiling, 0))
		row("fleet: Redis, of a processor, and at the ceiling", "%s, %s", spread(f.CPU, 3), spread(f.CeilingCPU, 3))
		row("fleet: ratio to the ceiling", "%s", spread(f.Ratio, 3))
		row("fleet: an idle worker polls, commands/s, of a processor", "%s, %s", spread(f.Polls, 0), spread(f.PollCPU, 4))
	}
	if f := r.Downloads; f.Clients > 0 {
		row("downloads: slow clients, all begun after s, bytes/s of each", "%d, %.1f, %.0f", f.Clients, f.Begin, f.Each)
		for _, u := range []struct {
			when string
			useFigure
		}{{"before", f.Before}, {"during", f.During}, {"after", f.After}} {
			row("downloads: API "+u.when+", MiB, goroutines, descriptors", "%.0f, %.0f, %.0f",
				u.Memory, u.Goroutines, u.Descriptors)
		}
		row("downloads: peak memory of the API, MiB", "%.0f", f.Peak)
		row("downloads: fast, alone, gzipped MB/s", "%s", spread(f.Alone, 0))
		row("downloads: fast, beside them, gzipped MB/s", "%s", spread(f.Beside, 0))
		row("downloads: ratio of the two", "%s", spread(f.Ratio, 2))
	}
	if f := r.Sweep; f.Objects > 0 {
		row("sweep: objects, jobs, objects of no job", "%d, %d, %d", f.Objects, f.Jobs, f.Orphans)
		row("sweep: s, objects/s, finished", "%.1f, %.0f, %t", f.Seconds, f.Rate, f.Finished)
		row("sweep: ratio to its interval", "%.4f of %.0f s", f.Ratio, f.Interval)
		row("sweep: scheduler before, peak, MiB", "%.0f, %.0f", f.Before, f.Peak)
	}
}

// machine describes the machine, as far as the system reports it.
func machine() machineFigures {
	m := machineFigures{Processor: runtime.GOARCH, Cores: runtime.NumCPU(), System: runtime.GOOS, Go: runtime.Version()}
	field := func(file, name string) (value string) {
		from, err := os.Open(file)
		if err != nil {
			return ""
		}
		defer from.Close()
		for lines := bufio.NewScanner(from); lines.Scan(); {
			key, found, _ := strings.Cut(lines.Text(), ":")
			if strings.TrimSpace(key) == name {
				return strings.TrimSpace(found)
			}
		}
		return ""
	}
	if name := field("/proc/cpuinfo", "model name"); name != "" {
		m.Processor = name
	}
	var kib float64
	if _, err := fmt.Sscanf(field("/proc/meminfo", "MemTotal"), "%f", &kib); err == nil {
		m.MemoryGiB = kib / (1 << 20)
	}
	if release, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m.System += " " + strings.TrimSpace(string(release))
	}
	return m
}
