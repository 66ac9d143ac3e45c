// Package ndjson is the source for a folder of files with resources: every file in it and its subfolders that
// lines.InFolder finds, NDJSON or Bundles. The type of a line is its resourceType; file names do not matter.
//
// It holds every type of fhir.StoredTypes. What of the compartment is about no patient that can be told, and every type
// outside of it, is returned by Everything alone; what is malformed or beyond the limits, by no call.
//
// Open reads all files once and keeps an index without bodies: 24 bytes for each resource of any type, and 24 more for each
// patient after the first that it is about; 12 more for each resource of a referenced type; and about 65 for each patient.
// A Provenance of several patients takes about 100 more, and one that About may return 24, and 16 for each of its targets.
// A resource that was deleted, or was about others before, takes 48 for each patient that it was about, or once.
// While Open runs it takes 64 bytes for each version and deletion, about 100 more for one of several patients, for a
// resource that was deleted or was about others, and for a Provenance or a line with references to resolve that has an
// older version, and about 150 for each patient, plus garbage. Gzipped files and Bundles are unpacked once into unlinked
// temporary files in Config.SpoolDir, so that lines can be read from the middle. Blank lines and those that are too long
// take no space there.
// Files with resources stay open until Close, each with its own descriptor. Files without, such as a log beside the data,
// may change.
//
// The cost of a query is proportional to its patients: their lines are looked up, sorted by place, and read with few long
// reads. Each line is compared with its hash in the index: after a file was changed in place, a read returns an error that
// wraps export.ErrUnavailable, never another line. After a file was replaced by renaming, the old file is still served.
//
// References by urn and by search are resolved when the folder is opened, and rewritten to Type/id when a line is read.
//
// A folder has no history: AsOf is ignored. Of two versions of a resource the newer is served: by meta.versionId if both
// have a number, else by meta.lastUpdated, and on a tie the later one in the order of files and lines. The entries of
// Bundles that delete a resource delete what precedes them in this order.
//
// What changed after a Snapshot has one answer for the whole folder. If no file and no folder in it was changed since,
// nothing did. If one was, everything may have: when a line is removed, an older version or another patient of what is in
// unchanged files shows, and a file that is removed leaves no trace but the time of its folder. Then a Window with After
// returns everything, NewPatients all patients, and Deleted all that it knows. A change is told by the later of the two
// times of a file; on Linux the second of them cannot be set. Times may be wrong by two seconds: a change so shortly before
// a Snapshot counts as later. Not seen are changes of the limits, of Bases, and of the rules by which lines are read.
//
// Deleted has what the files tell: a resource that a Bundle deletes and no later line restores; one whose served version
// follows a version about other patients; and one whose newest version is refused. Deletion.Before is empty if the files do
// not have the version before. What was removed from the files without a deletion is not known.
//
// A Window with Since goes by meta.lastUpdated, which is parsed when a line is read, and in Deleted by the modification
// time of the file.
//
// LeftOut counts what is in no export of a group or of patients although it is of a type that can be, and every line that
// no call returns. It is logged once, with the first place.
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

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/lines"
	"github.com/sluice-fhir/sluice/pkg/references"
	"github.com/sluice-fhir/sluice/pkg/source"
)

// blockSize is the number of bytes of a file that are indexed at once.
const blockSize = 1 << 20

// Config configures a source.
type Config struct {
	Dir      string       // the folder
	SpoolDir string       // for unpacked files; default os.TempDir()
	Logger   *slog.Logger // default: no log
	Bases    fhir.Bases   // absolute references below them are local
	source.Limits

	batchSize int              // for tests, as now
	now       func() time.Time // default: time.Now
}

// Source is a source.Source over a folder. Its index never changes after Open.
type Source struct {
	files    []*file // nil for those without resources
	kinds    map[string]kind
	about    []aboutTarget       // of Provenance without a patient, sorted
	orphans  []entry             // those Provenance
	several  map[uint64][]uint32 // ranks of the patients of Provenance with several, by place
	patients []string            // ids, also those that are only referenced, then sentinels; sorted; the index is the rank
	held     []bool              // by rank: the Patient is held
	sizes    source.Sizes
	leftOut  export.Tally
	former   map[string][]former // sorted by home and place
	resolved *references.Table
	seed     maphash.Seed
	identity string
	history  *history
	partial  bool // a file or a subfolder could not be opened

	batchSize int

	closing  sync.Once
	closeErr error
}

// kind is the index of one type.
type kind struct {
	entries []entry  // sorted by home and place
	ids     []uint64 // of a referenced type: the hash of each id, ascending
	at      []uint32 // parallel to ids: the index in entries
}

// entry is one resource.
type entry struct {
	place uint64 // file number << placeBits | offset of the line
	check uint64 // hash of the line
	bytes uint32 // of the line, and the flags
	home  uint32 // rank of a patient that it is about; without one, of a sentinel of source, or noPatient
}

// Flags of entry.bytes.
const (
	resolvable = 1 << 31 // the line has references to resolve
	shared     = 1 << 30 // the line has an entry for each of several patients
	repeated   = 1 << 29 // a smaller one of these patients has an entry too; the longest line has 1<<28 bytes
)

func (e entry) size() uint32     { return e.bytes &^ (resolvable | shared | repeated) }
func (e entry) resolvable() bool { return e.bytes&resolvable != 0 }
func (e entry) shared() bool     { return e.bytes&shared != 0 }
func (e entry) repeated() bool   { return e.bytes&repeated != 0 }

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

// Open reads the folder and builds its index. An unreadable folder, and a file that changes while it is read, are errors;
// subfolders and files that cannot be opened, and what is broken in a file, are counted. The caller closes the source.
func Open(ctx context.Context, config Config) (_ *Source, err error) {
	config.SpoolDir = cmp.Or(config.SpoolDir, os.TempDir())
	config.Logger = cmp.Or(config.Logger, slog.New(slog.DiscardHandler))
	if config.now == nil {
		config.now = time.Now
	}
	history, err := begin(ctx, config)
	if err != nil {
		return nil, err
	}
	folder, err := lines.InFolder(config.Dir)
	if err != nil {
		return nil, fmt.Errorf("open folder of resources: %w", err)
	}
	s, err := index(ctx, config, folder, nil)
	if found := (bundlesInside)(nil); errors.As(err, &found) { // rare: read again
		s, err = index(ctx, config, folder, found)
	}
	if err != nil {
		return nil, err
	}
	history.unsure = history.unsure || s.partial
	s.history = history
	return s, nil
}

// index builds the index of the files. Of those that bundles names it looks for Bundles among the lines.
func index(ctx context.Context, config Config, folder lines.Folder, bundles bundlesInside) (_ *Source, err error) {
	files, broken, err := openFiles(folder.Files)
	if err != nil {
		return nil, fmt.Errorf("open folder of resources: %w", err)
	}
	for _, f := range files {
		f.expand = bundles[f.name]
	}
	s := &Source{files: files, seed: maphash.MakeSeed(), batchSize: cmp.Or(config.batchSize, batchSize)}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	s.partial = len(folder.Broken)+len(broken) > 0
	b := newBuilder(files, s.seed, config)
	for _, f := range slices.Concat(folder.Broken, broken) {
		b.leaveOut("", export.UnreadableFile, location{file: -1, name: fmt.Sprintf("%s: %v", f.Name, f.Err)})
	}
	if err := b.read(ctx, config.SpoolDir); err != nil {
		return nil, fmt.Errorf("index folder of resources: %w", err)
	}
	if err := b.finish(ctx, s); err != nil {
		return nil, fmt.Errorf("index folder of resources: %w", err)
	}
	b.report(ctx, config.Logger, s, folder)
	for i, f := range s.files {
		if b.holds[i] {
			continue
		}
		s.files[i] = nil
		if err := f.close(); err != nil {
			return nil, fmt.Errorf("index folder of resources: %w", err)
		}
	}
	return s, nil
}

// Close closes every file and frees the spool. Running reads return an error. It may be called twice.
func (s *Source) Close() error {
	s.closing.Do(func() {
		for _, f := range s.files {
			if f != nil {
				s.closeErr = errors.Join(s.closeErr, f.close())
			}
		}
	})
	return s.closeErr
}

// Check returns an error that wraps export.ErrUnavailable when a file with resources was changed after Open. The error is
// permanent: restart the process to index the folder again.
func (s *Source) Check(ctx context.Context) error {
	for _, f := range s.files {
		if err := ctx.Err(); err != nil {
			return err
		}
		if f == nil {
			continue
		}
		if err := f.unchanged(); err != nil {
			return err
		}
	}
	return nil
}

// Snapshot implements source.Source: a folder has no history, so it returns the last instant at which the folder is known
// to be as it was read. If a file could not be opened, a later process may have it without a change, so the instant is not
// after the last change.
func (s *Source) Snapshot(ctx context.Context, now time.Time) (time.Time, error) {
	at, err := s.history.look(ctx)
	if err != nil {
		return at, err
	}
	if s.history.unsure && s.history.changed.Before(at) {
		at = s.history.changed
	}
	if at.Before(now) {
		now = at
	}
	return now.UTC().Truncate(time.Second), nil
}

// Sizes implements source.Source. The identity is the same in any process for the same resources, refused versions and
// deletions in the same places of files of the same names. Other files do not matter.
func (s *Source) Sizes(context.Context) (source.Sizes, error) {
	return source.Sizes{Patients: s.sizes.Patients, Types: maps.Clone(s.sizes.Types), Identity: s.identity}, nil
}

// LeftOut implements source.Source.
func (s *Source) LeftOut(context.Context) ([]export.LeftOut, error) { return s.leftOut.List(), nil }
