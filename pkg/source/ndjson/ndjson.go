// Package ndjson is a source that reads a folder of NDJSON files: every *.ndjson and *.ndjson.gz in it and in its
// subfolders (names that begin with a dot are passed over), whatever the files are called: a line's type is its
// resourceType.
//
// Open reads everything once and keeps an index without bodies: 24 bytes for each resource of the compartment and each
// patient that it is about, 32 for each referenced one and about 45 for each patient. While it is built it takes 48
// bytes a resource, 16 more for each further patient of one, and about 150 a patient, plus what the collector has not
// yet freed. Measured on a million resources of 2,500 patients: 24 MB in the
// end, 75 MB at most. Files that are gzipped are decompressed once into unlinked temporary files, so that lines can be
// read from the middle: they take their uncompressed size in Config.SpoolDir until Close. Every file stays open until
// Close: a folder of very many files needs as many descriptors.
//
// A slice of patients costs what those patients cost: their lines are looked up, sorted by place and read with as few
// and as long reads as that allows. Each line is compared with the hash that the index holds of it. When a file has
// been written to since, the answer is an error that wraps export.ErrUnavailable, never another line. A file that
// was replaced by a new one of its name goes on to be served as it was.
//
// A folder has no history: it is a snapshot taken before Open, and AsOf is ignored. Of a resource that stands in the
// folder twice, the newest by meta.lastUpdated is served, on a tie the later one in the order of files and lines.
//
// What is not served: lines that are not a FHIR resource with a type of R4 and an id (they are Problems), types that
// are no part of an export (they are only counted), and resources of the compartment that name no patient.
package ndjson

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/sluice-fhir/sluice/pkg/source"
)

// maxLine is the length in bytes from which on a line is not served. It bounds the memory of reading.
const maxLine = 256 << 20

// maxProblems is how many problems are kept one by one.
const maxProblems = 10000

// Config says what to open.
type Config struct {
	Dir      string       // the folder
	SpoolDir string       // for what is decompressed; default os.TempDir()
	Logger   *slog.Logger // default: nothing is logged

	maxLine, batchSize int // for tests
}

// Source is a source.Source over a folder. Its index never changes after Open.
type Source struct {
	files    []*file
	kinds    map[string]kind
	about    []aboutTarget // of Provenance without a patient, sorted
	nobody   []entry       // those Provenance
	several  map[uint64][]uint32
	patients names
	sizes    source.Sizes
	problems []source.Problem
	seed     maphash.Seed

	batchSize int

	closing  sync.Once
	closeErr error
}

// kind is what the index holds of one type.
type kind struct {
	entries *chunked[entry] // by home and place; for a referenced type in the order of ids
	ids     []uint64        // for a referenced type: the hash of each entry's id, ascending
}

// entry is one resource.
type entry struct {
	place uint64 // file number << placeBits | offset of the line
	check uint64 // hash of the line
	size  uint32 // bytes of the line
	home  uint32 // rank of a patient that it is about; noPatient for a referenced type
}

// aboutTarget says that a Provenance of Source.nobody targets a resource.
type aboutTarget struct {
	target uint64 // hash of Type/id
	entry  uint32 // in Source.nobody
}

const (
	placeBits  = 40 // a file may hold a terabyte
	placeMask  = 1<<placeBits - 1
	maxFiles   = 1 << (64 - placeBits)
	noPatient  = 1<<31 - 1 // above every patient's number
	manyPeople = 1 << 31   // flag beside a patient's number while building: about further patients too
)

func (e entry) file() int     { return int(e.place >> placeBits) }
func (e entry) offset() int64 { return int64(e.place & placeMask) }

// Open reads the folder and builds its index. An unreadable folder or file, a broken gzip stream and a file that
// changes while it is read are errors; broken lines are not: Problems tells them. The caller closes the source.
func Open(ctx context.Context, config Config) (_ *Source, err error) {
	if config.SpoolDir == "" {
		config.SpoolDir = os.TempDir()
	}
	if config.maxLine == 0 {
		config.maxLine = maxLine
	}
	if config.batchSize == 0 {
		config.batchSize = batchSize
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	files, err := openFiles(config.Dir)
	if err != nil {
		return nil, fmt.Errorf("open folder of NDJSON: %w", err)
	}
	s := &Source{files: files, seed: maphash.MakeSeed(), batchSize: config.batchSize}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	b := newBuilder(s.seed, config.maxLine)
	if err := readFiles(ctx, files, config.SpoolDir, b); err != nil {
		return nil, fmt.Errorf("index folder of NDJSON: %w", err)
	}
	if err := b.finish(ctx, s); err != nil {
		return nil, fmt.Errorf("index folder of NDJSON: %w", err)
	}
	var resources, bytes int64
	for _, size := range s.sizes.Types {
		resources += size.Resources
		bytes += size.Bytes
	}
	config.Logger.InfoContext(ctx, "folder of NDJSON indexed", "files", len(files), "resources", resources,
		"bytes", bytes, "patients", s.sizes.Patients, "without_patient", b.homeless, "problems", b.broken)
	return s, nil
}

// Close closes every file and frees the spool. Calls that still read end with an error. It may be called twice.
func (s *Source) Close() error {
	s.closing.Do(func() {
		for _, f := range s.files {
			s.closeErr = errors.Join(s.closeErr, f.close())
		}
	})
	return s.closeErr
}

// Snapshot implements source.Source: a folder has no past.
func (s *Source) Snapshot(_ context.Context, now time.Time) (time.Time, error) {
	return now.UTC().Truncate(time.Second), nil
}

// Sizes implements source.Source.
func (s *Source) Sizes(context.Context) (source.Sizes, error) {
	return source.Sizes{Patients: s.sizes.Patients, Types: maps.Clone(s.sizes.Types)}, nil
}

// Problems implements source.Source. Of very many problems it tells the first and how many more there are.
func (s *Source) Problems(ctx context.Context, types []string, yield func(source.Problem) error) error {
	for _, problem := range s.problems {
		if err := ctx.Err(); err != nil {
			return err
		}
		if problem.Type != "" && !slices.Contains(types, problem.Type) {
			continue
		}
		if err := yield(problem); err != nil {
			return err
		}
	}
	return nil
}
