package filedir

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/directory/internal/groupndjson"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// Groups implements directory.Groups on a folder of NDJSON files. Methods may be called concurrently.
type Groups struct {
	dir     string
	members groupndjson.Resolver
	now     func() time.Time
	log     *slog.Logger

	mu     sync.Mutex
	files  []*fileIndex        // in the order of their paths
	groups map[string]*version // the newest version of each group, by id; nil before the first read
}

var _ directory.Groups = (*Groups)(nil)

// OpenGroups indexes the folder's groups, without their members. It fails only if the folder cannot be read: what cannot
// be read in it is logged, and the rest can be exported. Absolute references below the bases are local. Periods are
// compared with the clock.
func OpenGroups(dir string, bases fhir.Bases, now func() time.Time, log *slog.Logger) (*Groups, error) {
	g := &Groups{dir: dir, members: groupndjson.Resolver{Bases: bases, URNs: true}, now: now, log: log}
	if err := g.read(); err != nil {
		return nil, fmt.Errorf("groups: %w", err)
	}
	return g, nil
}

// Exists implements directory.Groups. It returns an error that wraps directory.ErrUnreadable for a group whose
// newest version is not valid, and export.ErrUnavailable for one whose file cannot be read.
func (g *Groups) Exists(ctx context.Context, groupID string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	_, err := g.find(groupID)
	return err
}

// Check returns an error if the folder cannot be read now. A file or a group that cannot be read is no error.
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
	var ids []string
	for _, file := range g.files {
		for _, group := range file.groups {
			if g.groups[group.ID] == group && group.err == nil && group.Exportable {
				ids = append(ids, group.ID)
			}
		}
	}
	return ids, nil
}

// LeftOut returns the number of groups and of files that cannot be read, as of the last call of another method.
func (g *Groups) LeftOut() []export.LeftOut {
	g.mu.Lock()
	defer g.mu.Unlock()
	var tally export.Tally
	for _, file := range g.files {
		tally.Add("Group", export.Malformed, int64(file.bad))
		if file.err != nil {
			tally.Add("", export.UnreadableFile, 1)
		}
	}
	return tally.List()
}

// find returns the newest version of a group. It reads what has changed in the folder.
func (g *Groups) find(groupID string) (*version, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.refresh(); err != nil {
		return nil, err
	}
	return g.newest(groupID)
}

// newest returns the newest version of a group. The caller holds the lock.
func (g *Groups) newest(groupID string) (*version, error) {
	group := g.groups[groupID]
	switch {
	case group == nil:
		for _, file := range g.files {
			if file.transient() { // the group may be in it
				return nil, fmt.Errorf("groups: %w: %s: %w", export.ErrUnavailable, file.file.name, file.err)
			}
		}
		return nil, directory.ErrNoGroup
	case group.err != nil:
		reason := directory.ErrUnreadable
		if isTransient(group.err) {
			reason = export.ErrUnavailable
		}
		return nil, fmt.Errorf("group %s in %s: %w: %w", groupID, group.place(), reason, group.err)
	case !group.Exportable:
		return nil, directory.ErrNoGroup
	}
	return group, nil
}

// plan returns the newest versions of a group and of its member groups at the instant, to any depth, in the order of files
// and lines, and the number of member groups that cannot be exported. It reads what has changed in the folder.
func (g *Groups) plan(groupID string, now time.Time) (groups []*version, missing int64, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.refresh(); err != nil {
		return nil, 0, err
	}
	root, err := g.newest(groupID)
	if err != nil {
		return nil, 0, err
	}
	groups = []*version{root}
	seen := map[string]bool{groupID: true}
	for n := 0; n < len(groups); n++ {
		for _, member := range groups[n].nested {
			active, err := groupndjson.Member{Period: member.period}.Covers(now)
			if err != nil || !active || seen[member.group] { // an error is that of the version
				continue
			}
			seen[member.group] = true
			if group, err := g.newest(member.group); err == nil {
				groups = append(groups, group)
			} else {
				missing++
			}
		}
	}
	slices.SortFunc(groups, func(a, b *version) int {
		return cmp.Or(strings.Compare(a.file.name, b.file.name), cmp.Compare(a.offset, b.offset))
	})
	return groups, missing, nil
}

// refresh reads what has changed in the folder. The caller holds the lock.
func (g *Groups) refresh() error {
	if err := g.read(); err != nil {
		return fmt.Errorf("groups: %w: %w", export.ErrUnavailable, err)
	}
	return nil
}

func (g *Groups) read() error {
	found, all, err := list(g.dir)
	if err != nil {
		return err
	}
	if len(found) == 0 && (g.groups == nil || len(g.files) > 0) {
		g.log.Warn("no file named *Group*.ndjson", "folder", g.dir, "files", all)
	}
	known := make(map[string]*fileIndex, len(g.files))
	for _, file := range g.files {
		known[file.file.name] = file
	}
	changed := g.groups == nil || len(found) != len(g.files)
	files := make([]*fileIndex, len(found))
	for i, file := range found {
		old := known[file.name]
		if files[i] = old; old != nil && unchanged(file, old.file) && !old.transient() {
			continue
		}
		files[i] = readFile(g.dir, file, g.members)
		g.report(files[i], old)
		stillEmpty := old != nil && len(old.groups)+len(files[i].groups) == 0 // such as a file that cannot be opened
		changed = changed || !stillEmpty
	}
	g.files = files
	if changed {
		g.groups = newestOf(files)
	}
	return nil
}

// report logs what cannot be read in a file, unless it is what could not be read before.
func (g *Groups) report(file, old *fileIndex) {
	if old == nil {
		old = &fileIndex{}
	}
	if file.err != nil && fmt.Sprint(file.err) != fmt.Sprint(old.err) {
		g.log.Warn("a group file cannot be read to its end; other files can", "file", file.file.name, "err", file.err)
	}
	if file.bad > 0 && (file.bad != old.bad || file.first != old.first) {
		g.log.Warn("groups cannot be read; others can", "file", file.file.name, "lines", file.bad, "first", file.first)
	}
	if file.others > 0 && file.others != old.others {
		g.log.Warn("lines of a group file are not Group resources", "file", file.file.name, "lines", file.others)
	}
}

// newestOf returns the newest version of each group: by number if all versions have one, else by time, else the later one.
// A version that cannot be read counts as the newest if its time cannot be told, since an older one may have members who
// have left.
func newestOf(files []*fileIndex) map[string]*version {
	numbered := make(map[string]bool) // whether all versions of the group have a number
	for _, file := range files {
		for _, group := range file.groups {
			before, seen := numbered[group.ID]
			numbered[group.ID] = group.Number != nil && (before || !seen)
		}
	}
	newest := make(map[string]*version, len(numbered))
	for _, file := range files {
		for _, group := range file.groups {
			if best := newest[group.ID]; best == nil || compare(group, best, numbered[group.ID]) >= 0 {
				newest[group.ID] = group
			}
		}
	}
	return newest
}

func compare(a, b *version, numbered bool) int {
	if numbered && *a.Number != *b.Number {
		return cmp.Compare(*a.Number, *b.Number)
	}
	untold := func(v *version) int {
		if v.err != nil && v.LastUpdated.IsZero() {
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(untold(a), untold(b)), a.LastUpdated.Compare(b.LastUpdated))
}
