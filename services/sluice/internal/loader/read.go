package loader

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/source/postgres"
)

// Sink receives the lines. Its functions are called from several goroutines at once.
type Sink struct {
	Resources func(ctx context.Context, typ string, lines []postgres.Line) error
	// Group receives one Group resource. problem is an error in the line, err ends the load. Places rank as in Line.
	Group    func(ctx context.Context, place int64, line []byte) (problem error, err error)
	Problem  func(place, what string) // reports a line that is left out
	Progress func(bytes int64)        // reports more bytes read, as on disk
}

// Summary counts the lines.
type Summary struct {
	Resources map[string]int64 // passed on, by type, Groups included
	Bytes     int64            // of the resources, as NDJSON
	Ignored   map[string]int64 // of types that are never exported
	Problems  int64            // lines left out
}

// Read reads every file once. Two versions of one resource rank by the order of files and lines.
func Read(ctx context.Context, files []File, sink Sink) (Summary, error) {
	r := reader{blockSize: 4 << 20, maxLine: 256 << 20}
	return r.read(ctx, files, sink)
}

type reader struct{ blockSize, maxLine int }

// placeBits are the bits of a place that hold the line's number.
const placeBits = 40

// place ranks a line among all lines of all files.
func place(file int, line int64) int64 { return int64(file)<<placeBits | line }

func (r *reader) read(ctx context.Context, files []File, sink Sink) (Summary, error) {
	cores := runtime.GOMAXPROCS(0)
	order := make(chan int, len(files))
	numbers := make([]int, len(files))
	for i := range numbers {
		numbers[i] = i
	}
	// The largest first, so that no large file is read alone at the end.
	slices.SortStableFunc(numbers, func(i, j int) int { return cmp.Compare(files[j].Size, files[i].Size) })
	for _, number := range numbers {
		order <- number
	}
	close(order)

	p := parser{files: files, sink: sink, sum: Summary{Resources: map[string]int64{}, Ignored: map[string]int64{}}}
	blocks := make(chan block)
	group, ctx := errgroup.WithContext(ctx)
	var readers sync.WaitGroup
	for range min(cores, len(files)) {
		readers.Add(1)
		group.Go(func() error {
			defer readers.Done()
			for number := range order {
				err := r.blocks(ctx, number, files[number], func(b block) error {
					select {
					case blocks <- b:
						return nil
					case <-ctx.Done():
						return ctx.Err()
					}
				}, func(line int64) { p.problem(number, line, fmt.Sprintf("longer than %d bytes", r.maxLine-1)) })
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	group.Go(func() error {
		readers.Wait()
		close(blocks)
		return nil
	})
	// One more than cores, because some wait for the database.
	for range cores + 1 {
		group.Go(func() error {
			var scanner fhir.Scanner
			for b := range blocks {
				if err := p.parse(ctx, &scanner, b); err != nil {
					return err
				}
			}
			return nil
		})
	}
	err := group.Wait()
	return p.sum, err
}

// parser splits blocks into lines and passes them on.
type parser struct {
	files []File
	sink  Sink

	mu  sync.Mutex
	sum Summary
}

func (p *parser) parse(ctx context.Context, scanner *fhir.Scanner, b block) error {
	byType := map[string][]postgres.Line{}
	ignored := map[string]int64{}
	var groups, bytesRead int64
	data := b.data
	if b.line == 1 {
		data = bytes.TrimPrefix(data, []byte("\ufeff"))
	}
	for number := b.line; len(data) > 0; number++ {
		var body []byte
		body, data, _ = bytes.Cut(data, []byte{'\n'})
		if body = bytes.Trim(body, " \t\r"); len(body) == 0 {
			continue
		}
		facts, err := scanner.Scan(body)
		switch {
		case err != nil:
			p.problem(b.file, number, err.Error())
		case !fhir.IsType(facts.Type):
			p.problem(b.file, number, "not a resource type of FHIR R4")
		case facts.Type == "Group":
			problem, err := p.sink.Group(ctx, place(b.file, number), body)
			if err != nil {
				return err
			}
			if problem != nil {
				p.problem(b.file, number, problem.Error())
				continue
			}
			groups++
			bytesRead += int64(len(body)) + 1
		case !fhir.IsExportable(facts.Type):
			ignored[facts.Type]++
		default:
			facts.Subjects = slices.Clone(facts.Subjects) // the scanner reuses the slice
			byType[facts.Type] = append(byType[facts.Type], postgres.Line{
				Place: place(b.file, number), Facts: facts, Body: body,
			})
			bytesRead += int64(len(body)) + 1
		}
	}
	for typ, lines := range byType {
		if err := p.sink.Resources(ctx, typ, lines); err != nil {
			return err
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for typ, lines := range byType {
		p.sum.Resources[typ] += int64(len(lines))
	}
	if groups > 0 {
		p.sum.Resources["Group"] += groups
	}
	for typ, n := range ignored {
		p.sum.Ignored[typ] += n
	}
	p.sum.Bytes += bytesRead
	p.sink.Progress(b.read)
	return nil
}

// problem reports a line that is left out.
func (p *parser) problem(file int, line int64, what string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sum.Problems++
	p.sink.Problem(fmt.Sprintf("%s line %d", p.files[file].Path, line), what)
}
