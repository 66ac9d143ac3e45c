package filedir

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/directory/internal/groupndjson"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/platform/configfile"
)

// Groups implements directory.Groups on a folder of NDJSON files. Methods may be called concurrently.
type Groups struct {
	dir string
	now func() time.Time

	mu      sync.Mutex
	seen    []groupFile      // the files that index and problem were read from, sorted by name
	index   map[string]place // the groups that can be exported, by id
	problem error            // why there is no index
}

var _ directory.Groups = (*Groups)(nil)

// place is the position of a group's resource.
type place struct {
	file   groupFile
	line   int   // from 1
	offset int64 // of the line, in uncompressed bytes
}

// OpenGroups indexes the folder's groups, without their members, and fails on the first line that is not a Group.
// Periods are compared with the clock.
func OpenGroups(dir string, now func() time.Time) (*Groups, error) {
	g := &Groups{dir: dir, now: now}
	if err := g.read(); err != nil {
		return nil, fmt.Errorf("groups: %w", err)
	}
	return g, nil
}

// Exists implements directory.Groups.
func (g *Groups) Exists(ctx context.Context, groupID string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	_, err := g.find(groupID)
	return err
}

// Check returns the error that Exists would return for any group now. It reads the folder if it has changed.
func (g *Groups) Check(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.refresh()
}

// IDs returns the ids of the groups that can be exported, in the order of files and lines.
func (g *Groups) IDs() ([]string, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.refresh(); err != nil {
		return nil, err
	}
	ids := slices.Collect(maps.Keys(g.index))
	slices.SortFunc(ids, func(a, b string) int {
		x, y := g.index[a], g.index[b]
		return cmp.Or(cmp.Compare(x.file.name, y.file.name), cmp.Compare(x.line, y.line))
	})
	return ids, nil
}

// find returns the place of a group. It reads the folder if it has changed.
func (g *Groups) find(groupID string) (place, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.refresh(); err != nil {
		return place{}, err
	}
	at, ok := g.index[groupID]
	if !ok {
		return place{}, directory.ErrNoGroup
	}
	return at, nil
}

// refresh reads the folder if it has changed. The caller holds the lock.
func (g *Groups) refresh() error {
	if err := g.read(); err != nil {
		return fmt.Errorf("groups: %w: %w", export.ErrUnavailable, err)
	}
	return nil
}

func (g *Groups) read() error {
	files, err := list(g.dir)
	if err != nil {
		return err
	}
	if !slices.EqualFunc(files, g.seen, unchanged) {
		g.index, g.problem = readIndex(g.dir, files)
		g.seen = files
	}
	return g.problem
}

// list returns the folder's group files, sorted by name.
func list(dir string) ([]groupFile, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var files []groupFile
	for _, entry := range entries {
		name := entry.Name()
		plain := strings.TrimSuffix(name, ".gz")
		if entry.IsDir() || !strings.HasPrefix(name, "Group") || !strings.HasSuffix(plain, ".ndjson") {
			continue
		}
		info, err := os.Stat(filepath.Join(dir, name)) // follows links, which mounted configuration uses
		if err != nil {
			return nil, err
		}
		files = append(files, groupFile{name, info})
	}
	return files, nil
}

// groupFile is the state of a file.
type groupFile struct {
	name string // in the folder, even if it is a link
	info fs.FileInfo
}

// unchanged reports whether both states have the same content.
func unchanged(a, b groupFile) bool {
	return a.name == b.name && configfile.SameContent(a.info, b.info)
}

func readIndex(dir string, files []groupFile) (map[string]place, error) {
	index := make(map[string]place)
	taken := make(map[string]place) // including groups that cannot be exported
	for _, file := range files {
		if err := readFile(dir, file, index, taken); err != nil {
			return nil, err
		}
	}
	return index, nil
}

func readFile(dir string, file groupFile, index, taken map[string]place) error {
	content, err := open(filepath.Join(dir, file.name))
	if err != nil {
		return fmt.Errorf("%s: %w", file.name, err)
	}
	defer content.Close()
	lines := &lineReader{from: bufio.NewReaderSize(content, bufferSize)}
	for at := (place{file: file, line: 1}); lines.next(); at.line++ {
		at.offset = lines.offset
		group, err := groupndjson.Read(lines, func(m groupndjson.Member) error {
			_, err := m.Covers(time.Time{}) // only for its error
			return err
		})
		if err == nil {
			err = lines.rest()
		}
		if lines.err != nil {
			return fmt.Errorf("%s line %d: %w", file.name, at.line, lines.err)
		}
		if errors.Is(err, io.EOF) {
			continue // a blank line
		}
		if err != nil {
			return fmt.Errorf("%s line %d: %w", file.name, at.line, err)
		}
		if first, twice := taken[group.ID]; twice {
			return fmt.Errorf("%s line %d: group %s is also in %s line %d",
				file.name, at.line, group.ID, first.file.name, first.line)
		}
		taken[group.ID] = at
		if group.Exportable {
			index[group.ID] = at
		}
	}
	if lines.err != nil {
		return fmt.Errorf("%s: %w", file.name, lines.err)
	}
	return nil
}

// content is an open file, uncompressed.
type content struct {
	io.Reader
	file *os.File
}

func (c content) Close() error { return c.file.Close() }

// skipTo moves to an offset of the uncompressed content. Call it before reading.
func (c content) skipTo(ctx context.Context, offset int64) error {
	if c.Reader == io.Reader(c.file) {
		_, err := c.file.Seek(offset, io.SeekStart)
		return err
	}
	_, err := io.CopyN(io.Discard, stoppable{ctx, c.Reader}, offset)
	return err
}

func open(path string) (content, error) {
	file, err := os.Open(path)
	if err != nil {
		return content{}, err
	}
	if !strings.HasSuffix(path, ".gz") {
		return content{Reader: file, file: file}, nil
	}
	unzipped, err := gzip.NewReader(file)
	if err != nil {
		return content{}, errors.Join(err, file.Close())
	}
	return content{Reader: unzipped, file: file}, nil
}
