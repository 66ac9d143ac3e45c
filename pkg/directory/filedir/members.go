package filedir

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/sluice-fhir/sluice/pkg/directory/internal/groupndjson"
	"github.com/sluice-fhir/sluice/pkg/export"
)

// errReplaced means that the file is not the indexed one.
var errReplaced = errors.New("the file was replaced")

// Members implements directory.Groups. It reads the file from the group to the end of its members. If the file is
// replaced meanwhile, it continues to read the old one.
func (g *Groups) Members(ctx context.Context, groupID string, yield func(patientID string) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	const tries = 3 // the file may be replaced between find and open
	var err error
	for range tries {
		var at place
		if at, err = g.find(groupID); err != nil {
			return err
		}
		var refused error // of yield, returned unchanged
		err = g.stream(ctx, at, func(m groupndjson.Member) error {
			counts, err := m.Covers(g.now())
			if err != nil {
				return err
			}
			patient, ok := m.Patient()
			if !counts || !ok {
				return nil
			}
			if refused = ctx.Err(); refused == nil {
				refused = yield(patient)
			}
			return refused
		})
		if refused != nil {
			return refused
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil {
			return nil
		}
		err = fmt.Errorf("group %s in %s line %d: %w: %w", groupID, at.file.name, at.line, export.ErrUnavailable, err)
		if !errors.Is(err, errReplaced) {
			return err
		}
	}
	return err
}

// stream calls f for each member of the group at a place.
func (g *Groups) stream(ctx context.Context, at place, f func(groupndjson.Member) error) error {
	file, err := open(filepath.Join(g.dir, at.file.name))
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.file.Stat()
	if err != nil {
		return err
	}
	if !unchanged(groupFile{at.file.name, info}, at.file) {
		return errReplaced
	}
	if err := file.skipTo(ctx, at.offset); err != nil {
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
