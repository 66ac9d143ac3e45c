package filedir

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/directory/internal/groupndjson"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/lines"
)

// Groups implements directory.Groups on a folder of NDJSON files. Methods may be called concurrently.
type Groups struct {
	// Held streams the ids of the Patients that the server holds, for Unknown. Set it before other calls. Nil: the process has
	// no source, and no patient of the group "" is unknown.
	Held func(ctx context.Context, yield func(patientID string) error) error

	dir     string
	members groupndjson.Resolver
	now     func() time.Time
	log     *slog.Logger

	mu     sync.Mutex
	index  *index
	update *update // the one that runs, else nil
}

var _ directory.Groups = (*Groups)(nil)

// index is what was in the folder. It does not change.
type index struct {
	files  []*fileIndex        // in the order of lines.ComparePaths
	groups map[string]*version // the newest version of each group, by id
}

// update is a reading of what has changed in the folder. It ends by itself, even if nobody waits for it any more: a file
// that takes longer than a request may wait is read once.
type update struct {
	done  chan struct{}
	index *index
	err   error
}

// OpenGroups indexes the folder's groups, without their members. It fails only if the folder cannot be read: what cannot
// be read in it is logged, and the rest can be exported. Absolute references below the bases are local. Periods are
// compared with the clock.
func OpenGroups(
	ctx context.Context, dir string, bases fhir.Bases, now func() time.Time, log *slog.Logger,
) (*Groups, error) {
	g := &Groups{dir: dir, members: groupndjson.Resolver{Bases: bases, URNs: true}, now: now, log: log}
	var err error
	if g.index, err = g.read(ctx, nil); err != nil {
		return nil, fmt.Errorf("groups: %w", err)
	}
	return g, nil
}

// Exists implements directory.Groups. It returns an error that wraps directory.ErrUnreadable for a group whose
// newest version is not valid, and export.ErrUnavailable for one whose file cannot be read.
func (g *Groups) Exists(ctx context.Context, groupID string) error {
	index, err := g.current(ctx)
	if err != nil {
		return err
	}
	_, err = index.newest(groupID)
	return err
}

// Check returns an error if the folder cannot be read now. A file or a group that cannot be read is no error.
func (g *Groups) Check(ctx context.Context) error {
	_, err := g.current(ctx)
	return err
}

// IDs returns the ids of the groups that can be exported, in the order of files and lines.
func (g *Groups) IDs(ctx context.Context) ([]string, error) {
	index, err := g.current(ctx)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, file := range index.files {
		for _, group := range file.groups {
			if index.groups[group.ID] == group && group.err == nil && group.Exportable {
				ids = append(ids, group.ID)
			}
		}
	}
	return ids, nil
}

// Find implements directory.Groups.
func (g *Groups) Find(ctx context.Context, ids []string, after string, yield func(directory.Details) error) error {
	index, err := g.current(ctx)
	if err != nil {
		return err
	}
	asked := slices.Values(ids)
	if ids == nil {
		asked = maps.Keys(index.groups)
	}
	for _, id := range slices.Compact(slices.Sorted(asked)) {
		if id <= after {
			continue
		}
		group, err := index.newest(id)
		switch {
		case err == nil:
			err = yield(directory.Details{ID: id, Name: group.Name, Identifiers: group.Identifiers, Quantity: group.Quantity})
		case errors.Is(err, directory.ErrNoGroup), errors.Is(err, directory.ErrUnreadable):
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
	}
	return ctx.Err()
}

// LeftOut returns the number of groups and of files that cannot be read, as of the last call of another method.
func (g *Groups) LeftOut() []export.LeftOut {
	g.mu.Lock()
	defer g.mu.Unlock()
	var tally export.Tally
	for _, file := range g.index.files {
		tally.Add("Group", export.Malformed, int64(file.bad))
		if file.err != nil {
			tally.Add("", export.UnreadableFile, 1)
		}
	}
	return tally.List()
}

// newest returns the newest version of a group.
func (x *index) newest(groupID string) (*version, error) {
	group := x.groups[groupID]
	switch {
	case group == nil:
		for _, file := range x.files {
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
// and lines, and the number of member groups that cannot be exported.
func (x *index) plan(groupID string, now time.Time) (groups []*version, missing int64, err error) {
	root, err := x.newest(groupID)
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
			if group, err := x.newest(member.group); err == nil {
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

// current reads what has changed in the folder. Concurrent calls share one reading.
func (g *Groups) current(ctx context.Context) (*index, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	g.mu.Lock()
	u := g.update
	if u == nil {
		u = &update{done: make(chan struct{})}
		g.update = u
		known := g.index
		go func() {
			defer close(u.done)
			u.index, u.err = g.read(context.WithoutCancel(ctx), known)
			g.mu.Lock()
			defer g.mu.Unlock()
			if g.update = nil; u.err == nil {
				g.index = u.index
			}
		}()
	}
	g.mu.Unlock()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-u.done:
	}
	if u.err != nil {
		return nil, fmt.Errorf("groups: %w: %w", export.ErrUnavailable, u.err)
	}
	return u.index, nil
}

// read returns the index of the folder. What has not changed is taken from the last one, which is nil at first.
func (g *Groups) read(ctx context.Context, last *index) (*index, error) {
	found, all, err := list(g.dir, false)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(found, func(a, b groupFile) int { return lines.ComparePaths(a.name, b.name) })
	changed := last == nil || len(found) != len(last.files)
	if len(found) == 0 && changed {
		g.log.Warn("no file named *Group*.ndjson", "folder", g.dir, "files", all)
	}
	known := map[string]*fileIndex{}
	if last != nil {
		for _, file := range last.files {
			known[file.file.name] = file
		}
	}
	files := make([]*fileIndex, len(found))
	for i, file := range found {
		old := known[file.name]
		if files[i] = old; old != nil && unchanged(file, old.file) && !old.transient() {
			continue
		}
		files[i] = readFile(ctx, g.dir, file, g.members)
		g.report(files[i], old)
		stillEmpty := old != nil && old.empty() && files[i].empty() // such as a file that cannot be opened
		changed = changed || !stillEmpty
	}
	if !changed {
		return &index{files, last.groups}, nil
	}
	return &index{files, newestOf(files)}, nil
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
// have left. A deletion removes the versions in earlier files: a group that is created again may begin with a lower number.
func newestOf(files []*fileIndex) map[string]*version {
	deleted := map[string]int{} // by group: the last file that deletes it
	for n, file := range files {
		for _, id := range file.deleted {
			deleted[id] = n
		}
	}
	left := func(yield func(*version) bool) {
		for n, file := range files {
			for _, group := range file.groups {
				if last, gone := deleted[group.ID]; (!gone || n > last) && !yield(group) {
					return
				}
			}
		}
	}
	numbered := make(map[string]bool) // whether all versions of the group have a number
	for group := range left {
		before, seen := numbered[group.ID]
		numbered[group.ID] = group.Number != nil && (before || !seen)
	}
	newest := make(map[string]*version, len(numbered))
	for group := range left {
		if best := newest[group.ID]; best == nil || compare(group, best, numbered[group.ID]) >= 0 {
			newest[group.ID] = group
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
