package loader

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"sync"

	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/lines"
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

// Read reads every file once. Versions of one resource are ranked by the order of files and lines.
func Read(ctx context.Context, files []File, sink Sink) (Summary, error) {
	return read(ctx, files, sink, 4<<20, 32<<20)
}

// placeBits is the number of low bits of a place that hold the line number.
const placeBits = 40

// place ranks a line among all lines of all files.
func place(file int, line int64) int64 { return int64(file)<<placeBits | line }

func read(ctx context.Context, files []File, sink Sink, blockSize, maxLine int) (Summary, error) {
	p := parser{
		files: files, sink: sink, maxLine: maxLine,
		sum: Summary{Resources: map[string]int64{}, Ignored: map[string]int64{}},
	}
	r := lines.Reader{
		BlockSize: blockSize, MaxLine: maxLine, Open: p.open, Broken: func(file int, err error) { p.problem(file, 0, err.Error()) },
		Takers: runtime.GOMAXPROCS(0) + 1, // one more than cores, because some wait for the database
	}
	err := r.Read(ctx, files, p.parse)
	return p.sum, err
}

// parser splits blocks into lines and passes them on.
type parser struct {
	files   []File
	sink    Sink
	maxLine int

	mu  sync.Mutex
	sum Summary
}

// open returns the text of a file.
func (p *parser) open(file int) (lines.Text, error) {
	origin, err := os.Open(p.files[file].Path)
	if err != nil {
		return lines.Text{}, fmt.Errorf("open a file: %w", err)
	}
	text, err := lines.Open(p.files[file].Path, p.maxLine, true, func() io.Reader {
		return counted{io.NewSectionReader(origin, 0, p.files[file].Size), p}
	})
	if err != nil {
		return lines.Text{}, errors.Join(err, origin.Close())
	}
	text.Closer = origin
	return text, nil
}

// counted reports the bytes that are read.
type counted struct {
	io.Reader
	*parser
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sink.Progress(int64(n))
	return n, err
}

func (p *parser) parse(ctx context.Context, b *lines.Block) error {
	var scanner fhir.Scanner
	byType := map[string][]postgres.Line{}
	ignored := map[string]int64{}
	var groups, bytesRead int64
	for line := range b.Lines {
		number, body := line.Number, line.Body
		if line.TooLong {
			p.problem(b.File, number, fmt.Sprintf("longer than %d bytes", p.maxLine-1))
			continue
		}
		facts, err := scanner.Scan(body)
		switch {
		case err != nil:
			p.problem(b.File, number, err.Error())
		case !fhir.IsType(facts.Type):
			p.problem(b.File, number, "not a resource type of FHIR R4")
		case facts.Type == "Group":
			problem, err := p.sink.Group(ctx, place(b.File, number), body)
			if err != nil {
				return err
			}
			if problem != nil {
				p.problem(b.File, number, problem.Error())
				continue
			}
			groups++
			bytesRead += int64(len(body)) + 1
		case !fhir.IsExportable(facts.Type):
			ignored[facts.Type]++
		default:
			facts.Subjects = slices.Clone(facts.Subjects) // the scanner reuses the slice
			byType[facts.Type] = append(byType[facts.Type], postgres.Line{
				Place: place(b.File, number), Facts: facts, Body: body,
			})
			bytesRead += int64(len(body)) + 1
		}
	}
	for typ, staged := range byType {
		if err := p.sink.Resources(ctx, typ, staged); err != nil {
			return err
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for typ, staged := range byType {
		p.sum.Resources[typ] += int64(len(staged))
	}
	if groups > 0 {
		p.sum.Resources["Group"] += groups
	}
	for typ, n := range ignored {
		p.sum.Ignored[typ] += n
	}
	p.sum.Bytes += bytesRead
	return nil
}

// problem reports a line that is left out.
func (p *parser) problem(file int, line int64, what string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sum.Problems++
	p.sink.Problem(fmt.Sprintf("%s line %d", p.files[file].Path, line), what)
}
