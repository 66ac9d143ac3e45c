package filedir

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"time"

	"github.com/sluice-fhir/sluice/pkg/directory/internal/groupndjson"
	"github.com/sluice-fhir/sluice/pkg/export"
)

var (
	// errReplaced means that the file is not the indexed one. Nothing was read of it.
	errReplaced = errors.New("the file was replaced")
	errWritten  = errors.New("the file was written while it was read; replace files by renaming")
)

// Members implements directory.Groups. It reads each file with a member group once, from its first group to the end of the
// members of its last. If a file is replaced meanwhile, it continues to read the old one.
func (g *Groups) Members(
	ctx context.Context, groupID string, yield func(patientID string) error,
) ([]export.LeftOut, error) {
	return g.membersAt(ctx, groupID, g.now(), func(_ *version, _ groupndjson.Member, patient string) error {
		return yield(patient)
	})
}

// membersAt is Members at the instant, by the files as they are now. It yields the patients with the group and the entry.
func (g *Groups) membersAt(
	ctx context.Context, groupID string, now time.Time, yield func(*version, groupndjson.Member, string) error,
) ([]export.LeftOut, error) {
	var leftOut export.Tally
	var refused error // of yield, returned unchanged
	take := func(group *version, m groupndjson.Member) error {
		active, err := m.Covers(now)
		if err != nil || !active {
			return err
		}
		member, reason := g.members.Resolve(m)
		switch {
		case reason != "":
			leftOut.Add("", reason, 1)
		case member.Type == "Patient":
			if refused = ctx.Err(); refused == nil {
				refused = yield(group, m, member.ID)
			}
		}
		return refused
	}
	const tries = 3 // a file may be replaced before it is opened
	done := map[string]bool{}
	for try := 1; ; try++ {
		index, err := g.current(ctx)
		if err != nil {
			return nil, err
		}
		groups, missing, err := index.plan(groupID, now)
		if err != nil {
			return nil, err
		}
		groups = slices.DeleteFunc(groups, func(v *version) bool { return done[v.ID] })
		at, err := g.stream(ctx, groups, done, take)
		switch {
		case refused != nil:
			return nil, refused
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err == nil:
			leftOut.Add("", export.MemberGroup, missing)
			return leftOut.List(), nil
		case !errors.Is(err, errReplaced) || try == tries:
			return nil, fmt.Errorf("group %s in %s: %w: %w", at.ID, at.place(), export.ErrUnavailable, err)
		}
	}
}

// stream calls f for each member of the groups, which are in the order of files and lines, and adds the groups to done.
// With an error it returns the group that it was at.
func (g *Groups) stream(
	ctx context.Context, groups []*version, done map[string]bool, f func(*version, groupndjson.Member) error,
) (at *version, err error) {
	for len(groups) > 0 {
		others := slices.IndexFunc(groups, func(v *version) bool { return v.file.name != groups[0].file.name })
		if others < 0 {
			others = len(groups)
		}
		if at, err := g.streamFile(ctx, groups[:others], done, f); err != nil {
			return at, err
		}
		groups = groups[others:]
	}
	return nil, nil
}

// streamFile is stream for the groups of one file.
func (g *Groups) streamFile(
	ctx context.Context, groups []*version, done map[string]bool, f func(*version, groupndjson.Member) error,
) (at *version, err error) {
	indexed := groups[0].file
	file, err := open(filepath.Join(g.dir, filepath.FromSlash(indexed.name)))
	if err != nil {
		return groups[0], err
	}
	defer file.Close()
	info, err := file.file.Stat()
	if err != nil {
		return groups[0], err
	}
	if !unchanged(groupFile{name: indexed.name, info: info}, indexed) {
		return groups[0], errReplaced
	}
	defer func() {
		after, failed := file.file.Stat()
		if failed == nil && !unchanged(groupFile{name: indexed.name, info: after}, indexed) {
			failed = errWritten
		}
		if err == nil && failed != nil {
			at, err = groups[0], failed
		}
	}()
	text := bufio.NewReaderSize(stoppable{ctx, file}, bufferSize)
	position := int64(0) // in the uncompressed content
	for _, group := range groups {
		gap := group.offset - position
		if !file.zipped && gap > int64(text.Buffered()) {
			if _, err := file.file.Seek(group.offset, io.SeekStart); err != nil {
				return group, err
			}
			text.Reset(stoppable{ctx, file})
		} else if _, err := io.CopyN(io.Discard, text, gap); err != nil {
			return group, err
		}
		line := &lineReader{from: text}
		err := groupndjson.Members(line, func(m groupndjson.Member) error { return f(group, m) })
		position = group.offset + line.size
		if err := cmp.Or(line.err, err); err != nil { // the decoder hides that of the line
			return group, err
		}
		done[group.ID] = true
	}
	return nil, nil
}

// stoppable is a reader that ends with the context.
type stoppable struct {
	ctx  context.Context
	from io.Reader
}

func (s stoppable) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	return s.from.Read(p)
}

// Unknown implements directory.Groups. It reads the members as Members does, until it has met all patients: with one that
// is unknown, all members. With the group "" it reads Held.
func (g *Groups) Unknown(ctx context.Context, groupID string, patients []string) ([]string, error) {
	left := make(map[string]bool, len(patients))
	for _, id := range patients {
		left[id] = true
	}
	errMet := errors.New("all patients were met")
	meet := func(id string) error {
		if delete(left, id); len(left) == 0 {
			return errMet
		}
		return nil
	}
	var err error
	switch {
	case groupID != "":
		_, err = g.Members(ctx, groupID, meet)
	case g.Held != nil:
		err = g.Held(ctx, meet)
	default:
		return nil, ctx.Err()
	}
	if err != nil && !errors.Is(err, errMet) {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(patients), func(id string) bool { return !left[id] }), nil
}
