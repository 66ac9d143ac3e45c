package pipeline

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/source"
)

// blockMemory bounds the lines and references that a unit holds in memory, in bytes. A batch is chosen to need half of it.
const blockMemory = 32 << 20

// errTooLarge is the error of a batch that needs more than blockMemory.
var errTooLarge = errors.New("the blocks do not fit in memory")

// collect reads the blocks of the patients. It passes each line to put, with the place of the patient whose block it is in,
// and the size of its new references in memory; a nil line if only the references count.
func (o *organizer) collect(
	ctx context.Context, patients []string, n *numbers, put func(at int, line []byte, refBytes int64) error,
) error {
	refs := make([]refSet, len(patients))
	for _, p := range o.passes {
		err := o.read(ctx, p, patients, n, func(r source.Resource, line []byte, owners []int) error {
			if !p.writes() {
				line = nil
			}
			for _, at := range owners {
				if err := put(at, line, o.companions.referenced(r, &refs[at])); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	if err := o.companions.prefetch(ctx, refs); err != nil {
		return err
	}
	for at := range refs {
		err := o.companions.each(ctx, &refs[at], n, func(line []byte) error { return put(at, line, 0) })
		if err != nil {
			return err
		}
	}
	return nil
}

// gather reads the blocks of the patients into memory, as lines, each with its newline, or returns errTooLarge. Only a
// success changes the numbers.
func (o *organizer) gather(ctx context.Context, patients []string) ([][]byte, error) {
	blocks := make([][]byte, len(patients))
	var n numbers
	undo := o.attached.mark()
	room := o.blockMemory
	err := o.collect(ctx, patients, &n, func(at int, line []byte, refBytes int64) error {
		if room -= refBytes + int64(len(line)) + 1; room < 0 {
			return errTooLarge
		}
		if line != nil {
			blocks[at] = append(append(blocks[at], line...), '\n')
		}
		return nil
	})
	if err != nil {
		undo()
		return nil, err
	}
	o.merge(&n)
	return blocks, nil
}

// write writes blocks from memory.
func (o *organizer) write(patients []string, blocks [][]byte) error {
	for at, text := range blocks {
		if err := o.out.begin(patients[at], int64(len(text))); err != nil {
			return err
		}
		for line := range bytes.Lines(text) {
			if err := o.out.line(line[:len(line)-1]); err != nil {
				return err
			}
		}
		if err := o.out.end(); err != nil {
			return err
		}
	}
	return nil
}

// stream writes the block of a patient while it reads it, into files of its own.
func (o *organizer) stream(ctx context.Context, patient string) error {
	var n numbers
	if err := o.out.begin(patient, o.cfg.FileBytes); err != nil {
		return err
	}
	err := o.collect(ctx, []string{patient}, &n, func(_ int, line []byte, _ int64) error {
		if line == nil {
			return nil
		}
		return o.out.line(line)
	})
	if err != nil {
		return err
	}
	o.merge(&n)
	return o.out.end()
}

// read passes the admitted resources of one type of the patients to take: what the chain makes of it, and the places of the
// patients whose block it belongs to. All are valid until take returns.
func (o *organizer) read(
	ctx context.Context, p *pass, patients []string, n *numbers,
	take func(r source.Resource, line []byte, owners []int) error,
) error {
	p.guard.request(patients)
	query := source.Query{Type: p.unit.Type, Patients: patients, AsOf: o.job.Snapshot, Window: windowOf(o.job, p.unit)}
	err := o.Source.ForPatients(ctx, query, func(r source.Resource) error {
		verdict, err := p.guard.check(ctx, r)
		if err != nil || verdict == elsewhere {
			return err
		}
		if verdict == withheld {
			if p.writes() {
				n.withhold(r.Type, p.guard.why)
			}
			return nil
		}
		owners := p.guard.owners(r)
		line, err := p.chain.pass(r.Body)
		if err != nil {
			return err
		}
		if p.writes() {
			n.pass(r.Type, int64(len(owners)), line != nil)
		}
		if line == nil {
			return nil
		}
		if p.writes() {
			if line, err = o.attached.serve(ctx, r.Type, line); err != nil {
				return err
			}
		}
		return take(r, line, owners)
	})
	return streamError(ctx, err)
}

// merge adds the numbers of blocks that are written.
func (o *organizer) merge(n *numbers) {
	for _, l := range n.left.List() {
		o.metrics.withheld.WithLabelValues(string(l.Reason)).Add(float64(l.Count))
	}
	o.numbers.add(n)
}

// blockWriter writes blocks. A block begins in the current file if it fits there, else in a new one.
type blockWriter struct {
	out     *files
	header  []byte
	lines   int64 // of the block in the current file, without the header
	headers int64 // of all files
}

// begin begins the block of a patient, of about so many bytes. The header is written with the first line: there is no empty
// block.
func (b *blockWriter) begin(patient string, size int64) error {
	b.header, b.lines = fmt.Appendf(nil,
		`{"resourceType":%q,"parameter":[{"name":"header","valueReference":{"reference":"Patient/%s"}}]}`,
		export.HeaderType, patient), 0
	if b.out.object != nil && b.out.current.Bytes+int64(len(b.header))+1+size > b.out.worker.cfg.FileBytes {
		return b.out.finish()
	}
	return nil
}

// line appends a line to the block. If the file is full the block goes on in the next one, after another header.
func (b *blockWriter) line(line []byte) error {
	if b.lines > 0 && b.out.current.Bytes+int64(len(line)) >= b.out.worker.cfg.FileBytes {
		b.out.current.Continues = b.out.name(len(b.out.done) + 1)
		if err := b.out.finish(); err != nil {
			return err
		}
		b.lines = 0
	}
	if b.lines == 0 {
		if err := b.out.append(b.header); err != nil {
			return err
		}
		b.headers++
	}
	b.lines++
	return b.out.append(line)
}

// end ends the block.
func (b *blockWriter) end() error {
	if b.out.object != nil && b.out.current.Bytes >= b.out.worker.cfg.FileBytes {
		return b.out.finish()
	}
	return nil
}
