// Package ndjson is the source for a folder of NDJSON files: every *.ndjson and *.ndjson.gz in it and its subfolders,
// except names that begin with a dot. The type of a line is its resourceType; file names do not matter.
//
// Open reads all files once and keeps an index without bodies: 24 bytes for each compartment resource and patient that
// it is about, 32 for each referenced resource and about 64 for each patient. While Open runs it takes 48 bytes for each
// resource, about 100 more for one of several patients, and about 150 for each patient, plus garbage. A million resources
// of 2,500 patients took 24 MB after Open, 90 MB at the peak. Gzipped files are decompressed once into unlinked temporary
// files in Config.SpoolDir, so that lines can be read from the middle. All files stay open until Close, each with its own
// descriptor.
//
// The cost of a query is proportional to its patients: their lines are looked up, sorted by place, and read with few long
// reads. Each line is compared with its hash in the index: after a file was changed in place, a read returns an error that
// wraps export.ErrUnavailable, never another line. After a file was replaced by renaming, the old file is still served.
//
// A folder has no history: AsOf is ignored. Of two versions of a resource the newer meta.lastUpdated is served, on a tie
// the later one in the order of files and lines.
//
// The source does not serve lines that are not a FHIR resource with an R4 type and an id (Problems lists them), types that
// are never exported (Sizes counts them), and compartment resources without a patient.
package ndjson

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"maps"
	"math"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/sluice-fhir/sluice/pkg/lines"
	"github.com/sluice-fhir/sluice/pkg/source"
)

const (
	maxProblems = 10000   // kept
	blockSize   = 1 << 20 // bytes of a file that are indexed at once
)

// Config configures a source.
type Config struct {
	Dir      string       // the folder
	SpoolDir string       // for decompressed files; default os.TempDir()
	Logger   *slog.Logger // default: no log

	maxLine, batchSize int // for tests
}

// Source is a source.Source over a folder. Its index never changes after Open.
type Source struct {
	files    []*file
	kinds    map[string]kind
	about    []aboutTarget       // of Provenance without a patient, sorted
	orphans  []entry             // those Provenance
	several  map[uint64][]uint32 // ranks of the patients of Provenance with several, by place
	patients []string            // ids, sorted; the index of an id is its rank
	sizes    source.Sizes
	problems []source.Problem
	seed     maphash.Seed

	batchSize int

	closing  sync.Once
	closeErr error
}

// kind is the index of one type.
type kind struct {
	entries []entry  // sorted by home and place; of a referenced type parallel to ids
	ids     []uint64 // of a referenced type: the hash of each id, ascending
}

// entry is one resource.
type entry struct {
	place uint64 // file number << placeBits | offset of the line
	check uint64 // hash of the line
	size  uint32 // bytes of the line
	home  uint32 // rank of a patient that it is about; noPatient for a referenced type
}

// aboutTarget is a target of a Provenance of Source.orphans.
type aboutTarget struct {
	target uint64 // hash of Type/id
	entry  uint32 // index in Source.orphans
}

const (
	placeBits    = 40 // a file may hold a terabyte
	placeMask    = 1<<placeBits - 1
	maxFiles     = 1 << (64 - placeBits)
	noPatient    = math.MaxUint32
	manyPatients = math.MaxUint32 - 1 // while the index is built; its patients are in builder.several
)

func (e entry) file() int     { return int(e.place >> placeBits) }
func (e entry) offset() int64 { return int64(e.place & placeMask) }

// Open reads the folder and builds its index. An unreadable folder or file, a broken gzip stream and a file that changes
// while it is read are errors; broken lines are Problems. The caller closes the source.
func Open(ctx context.Context, config Config) (_ *Source, err error) {
	config.SpoolDir = cmp.Or(config.SpoolDir, os.TempDir())
	config.Logger = cmp.Or(config.Logger, slog.New(slog.DiscardHandler))
	files, err := openFiles(config.Dir)
	if err != nil {
		return nil, fmt.Errorf("open folder of NDJSON: %w", err)
	}
	s := &Source{files: files, seed: maphash.MakeSeed(), batchSize: cmp.Or(config.batchSize, batchSize)}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	b := newBuilder(files, s.seed, cmp.Or(config.maxLine, lines.MaxLine))
	if err := b.read(ctx, config.SpoolDir); err != nil {
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

// Close closes every file and frees the spool. Running reads return an error. It may be called twice.
func (s *Source) Close() error {
	s.closing.Do(func() {
		for _, f := range s.files {
			s.closeErr = errors.Join(s.closeErr, f.close())
		}
	})
	return s.closeErr
}

// Check returns an error that wraps export.ErrUnavailable when a file was changed after Open. The error is permanent:
// restart the process to index the folder again.
func (s *Source) Check(ctx context.Context) error {
	for _, f := range s.files {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := f.unchanged(); err != nil {
			return err
		}
	}
	return nil
}

// Snapshot implements source.Source: a folder has no history, so it returns now.
func (s *Source) Snapshot(_ context.Context, now time.Time) (time.Time, error) {
	return now.UTC().Truncate(time.Second), nil
}

// Sizes implements source.Source.
func (s *Source) Sizes(context.Context) (source.Sizes, error) {
	return source.Sizes{Patients: s.sizes.Patients, Types: maps.Clone(s.sizes.Types)}, nil
}

// Problems implements source.Source. It yields at most maxProblems problems, and the number of further ones.
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
