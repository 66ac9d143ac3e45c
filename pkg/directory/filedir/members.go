package filedir

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/directory/internal/groupndjson"
	"github.com/sluice-fhir/sluice/pkg/export"
)

// errReplaced means that the file is not the indexed one.
var errReplaced = errors.New("the file was replaced")

// Members implements directory.Groups. It reads the file of each group from the group to the end of its members. If a file
// is replaced meanwhile, it continues to read the old one.
func (g *Groups) Members(
	ctx context.Context, groupID string, yield func(patientID string) error,
) ([]export.LeftOut, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	now := g.now()
	var leftOut export.Tally
	groups, seen := []string{groupID}, map[string]bool{groupID: true}
	for n := 0; n < len(groups); n++ {
		var refused error // of yield, returned unchanged
		err := g.each(ctx, groups[n], func(m groupndjson.Member) error {
			active, err := m.Covers(now)
			if err != nil || !active {
				return err
			}
			member, reason := g.members.Resolve(m)
			switch {
			case reason != "":
				leftOut.Add("", reason, 1)
			case member.Type == "Group":
				if !seen[member.ID] {
					groups, seen[member.ID] = append(groups, member.ID), true
				}
			default:
				if refused = ctx.Err(); refused == nil {
					refused = yield(member.ID)
				}
			}
			return refused
		})
		var unreadable groupError
		switch {
		case refused != nil:
			return nil, refused
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case n > 0 && (errors.Is(err, directory.ErrNoGroup) || errors.As(err, &unreadable)):
			leftOut.Add("", export.MemberGroup, 1)
		case err != nil:
			return nil, err
		}
	}
	return leftOut.List(), nil
}

// each calls f for each member of the newest version of a group.
func (g *Groups) each(ctx context.Context, groupID string, f func(groupndjson.Member) error) error {
	const tries = 3 // the file may be replaced between find and open
	var err error
	for range tries {
		group, unknown := g.find(groupID)
		if unknown != nil {
			return unknown
		}
		if err = g.stream(ctx, group, f); err == nil {
			return nil
		}
		err = fmt.Errorf("group %s in %s: %w: %w", groupID, group.place(), export.ErrUnavailable, err)
		if !errors.Is(err, errReplaced) {
			return err
		}
	}
	return err
}

// stream calls f for each member of a version of a group.
func (g *Groups) stream(ctx context.Context, group *version, f func(groupndjson.Member) error) error {
	file, err := open(filepath.Join(g.dir, filepath.FromSlash(group.file.name)))
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.file.Stat()
	if err != nil {
		return err
	}
	if !unchanged(groupFile{name: group.file.name, info: info}, group.file) {
		return errReplaced
	}
	if err := file.skipTo(ctx, group.offset); err != nil {
		return err
	}
	line := &lineReader{from: bufio.NewReaderSize(stoppable{ctx, file}, bufferSize)}
	err = groupndjson.Members(line, f)
	if line.err != nil { // the decoder hides it
		return line.err
	}
	return err
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
