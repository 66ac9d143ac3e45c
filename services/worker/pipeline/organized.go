package pipeline

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/services/worker/internal/spillset"
)

// Output that is organized by patients (P-37) has blocks: the header, the Patient, what else is about the patient, and the
// referenced resources that these reference. A unit writes all types of a slice of the cohort. It reads the types of a few
// patients into memory, one after the other, and then writes their blocks. If they need too much memory it reads fewer, and
// streams the block of a patient who alone needs too much.

// blockMemory bounds the lines and references that a unit holds in memory, in bytes. A batch is chosen to need half of it.
const blockMemory = 32 << 20

// errTooLarge is the error of a batch that needs more than blockMemory.
var errTooLarge = errors.New("the blocks do not fit in memory")

// checkOrganized returns a permanent error for organized output that this version cannot write.
func checkOrganized(request export.Request) error {
	if request.OrganizedBy != "" && (request.OrganizedBy != "Patient" || request.Associated != "") {
		return export.Permanent("this version cannot organize the output of this request")
	}
	return nil
}

// inNoBlock returns what organized output of the types leaves out by design: what is about no patient, unless it is of a
// referenced type and referenced.
func inNoBlock(request export.Request, types []string) (left []export.LeftOut) {
	provenance := slices.ContainsFunc(types, fhir.IsReferenced) // may be about referenced resources alone
	for _, typ := range types {
		if request.AtLevel() == export.SystemLevel && !fhir.InCompartment(typ) || typ == "Provenance" && provenance {
			left = append(left, export.LeftOut{Type: typ, Reason: export.NoPatient})
		}
	}
	return left
}

// cutOrganized cuts units that export all types of a slice of the cohort.
func cutOrganized(request export.Request, chosen selection, sizes source.Sizes, cfg Config) []export.Unit {
	types, scope := allowed(request.Types, chosen.grant), export.ScopeCohort
	clinical := slices.ContainsFunc(types, fhir.InCompartment)
	switch {
	case !clinical:
		types, scope = slices.Concat(types, allowed(request.Through, chosen.grant)), export.ScopeFollowed
	case chosen.followAll:
		scope = export.ScopeFollowed
	}
	var of source.TypeSize
	read := map[string]bool{}
	for _, typ := range types {
		size, held := sizes.Types[typ]
		if held && fhir.IsExportable(typ) {
			read[typ] = true
		}
		if held && fhir.InCompartment(typ) {
			of.Bytes += size.Bytes
		}
	}
	all := export.Unit{Kind: export.KindExport, Types: strings.Join(slices.Sorted(maps.Keys(read)), ",")}
	var wholes, units []export.Unit
	add := func(id export.UnitID, scope export.Scope, chunks int, bytes int64) {
		unit := all
		unit.ID, unit.Scope, unit.Slice, unit.Bytes = id, scope, export.Slice{To: chunks}, bytes
		wholes = append(wholes, unit)
	}
	if !slices.ContainsFunc(slices.Sorted(maps.Keys(read)), fhir.InCompartment) {
		return nil
	}
	bytes := share(of, sizes, chosen.cohort.Patients)
	if request.Incremental() && scope != export.ScopeFollowed {
		bytes /= changedShare
	}
	if n := chosen.cohort.Chunks; n > 0 {
		add("organized", scope, n, bytes)
	}
	if n := chosen.cohort.Joined.Chunks; n > 0 && clinical {
		add("organized-joined", export.ScopeJoined, n, share(of, sizes, chosen.joinedCount))
	}
	if n := chosen.cohort.Gone.Chunks; n > 0 && clinical {
		add("organized-gone", export.ScopeGone, n, 0)
	}
	total := int64(0)
	for _, whole := range wholes {
		total += whole.Bytes
	}
	for _, whole := range wholes {
		units = append(units, divide(whole, cfg.unitBytes(total))...)
	}
	return units
}

// exportOrganized writes the blocks of the patients in the unit's slice of the cohort.
func (w *Worker) exportOrganized(ctx context.Context, lease export.Lease, job export.Job) (jobstore.Commit, error) {
	cohort, err := w.lists.Open(ctx, w.Objects, job.Cohort.Prefix, job.Cohort.Digest)
	if err != nil {
		return jobstore.Commit{}, err
	}
	o, err := w.newOrganizer(ctx, lease, job, cohort)
	if err != nil {
		return jobstore.Commit{}, err
	}
	defer o.attached.abort()
	var result export.Result
	result.Files, err = w.writeWithDeleted(ctx, lease, func(out *files, gone *deletions) error {
		o.out, o.gone = blockWriter{out: out}, gone
		if err := o.export(ctx); err != nil {
			return err
		}
		return o.companions.deleted(ctx, o.unit, gone)
	})
	if err != nil {
		return jobstore.Commit{}, err
	}
	result.Headers, result.LeftOut = o.out.headers, o.numbers.left.List()
	for _, n := range o.numbers.list() {
		result.Found += n.Found
		result.Filtered += n.Filtered
		result.Withheld += n.Withheld
		result.Types = append(result.Types, n)
	}
	if err := o.attached.addTo(&result); err != nil {
		return jobstore.Commit{}, err
	}
	if err := result.Check(); err != nil {
		return jobstore.Commit{}, err
	}
	return jobstore.Commit{Result: result, Next: job.Request.Next(lease.Unit.Kind, false)}, nil
}

// organizer runs an organized unit.
type organizer struct {
	*Worker

	job        export.Job
	unit       export.Unit
	sliced     *spillset.List
	joined     *spillset.List // those whose data units of their own export; nil: none
	passes     []*pass
	companions *companions
	attached   *attachedTypes
	numbers    numbers
	out        blockWriter
	gone       *deletions
}

// pass is one reading of a type. It has the guard, the window and the chain that a unit of the type would have.
type pass struct {
	unit   export.Unit // as if it were one of this type
	writes bool        // else only references count
	guard  guard
	chain  *chain
}

func (w *Worker) newOrganizer(
	ctx context.Context, lease export.Lease, job export.Job, cohort *spillset.List,
) (*organizer, error) {
	grant, err := w.Access.Grant(ctx, job.Owner)
	if err != nil {
		return nil, err
	}
	o := &organizer{Worker: w, job: job, unit: lease.Unit}
	planned := strings.Split(lease.Unit.Types, ",")
	types := allowed(planned, grant)
	for _, typ := range planned {
		if !slices.Contains(types, typ) { // withdrawn since the plan
			o.numbers.left.AddAll([]export.LeftOut{{Type: typ, Reason: export.NotGranted}})
		}
	}
	if !slices.ContainsFunc(types, fhir.InCompartment) {
		return nil, export.Permanent("the permission was withdrawn")
	}
	if at := slices.Index(types, "Patient"); at > 0 { // it comes first in its block
		types = slices.Insert(slices.Delete(types, at, at+1), 0, "Patient")
	}
	o.attached = &attachedTypes{worker: w, lease: lease, job: job, cohort: cohort, types: map[string]*attachments{}}
	o.companions = w.newCompanions(lease, job, types)
	o.companions.attached = o.attached
	add := func(typ string, scope export.Scope, writes bool) (err error) {
		p := &pass{unit: lease.Unit, writes: writes}
		p.unit.Type, p.unit.Scope = typ, scope
		if p.guard, o.sliced, err = w.newGuard(ctx, job, p.unit, cohort); err != nil {
			return err
		}
		p.guard.blocks = true
		newChain := w.newChain
		if !writes {
			newChain = w.newSelection
		}
		p.chain, err = newChain(requestOf(job, p.unit), typ)
		o.passes = append(o.passes, p)
		return err
	}
	followed := lease.Unit.Scope == export.ScopeFollowed
	for _, typ := range types {
		if !fhir.InCompartment(typ) {
			continue
		}
		if slices.Contains(job.Request.Types, typ) {
			scope := lease.Unit.Scope
			if followed {
				scope = export.ScopeCohort
			}
			if err := add(typ, scope, true); err != nil {
				return nil, err
			}
			o.numbers.of(typ)
		}
		if followed {
			if err := add(typ, export.ScopeFollowed, false); err != nil {
				return nil, err
			}
		}
	}
	if first := o.passes[0]; first.writes && first.unit.Scope == export.ScopeCohort {
		o.joined = first.guard.joined
	}
	return o, nil
}

// export reads and writes batches of patients.
func (o *organizer) export(ctx context.Context) error {
	slice := o.unit.Slice
	// Estimates: a batch that is too large is halved.
	inChunk := max(o.job.Cohort.Patients/int64(max(o.job.Cohort.Chunks, 1)), 1)
	batch := o.blockMemory / 2 * int64(slice.To-slice.From) * inChunk / max(o.unit.Bytes, 1)
	batch = min(max(batch, 1), queryChunks*spillset.ChunkSize)
	step := int(max(batch/spillset.ChunkSize, 1))
	for from := slice.From; from < slice.To; from += step {
		patients, err := o.sliced.IDs(ctx, from, min(from+step, slice.To))
		if err != nil {
			return err
		}
		if o.joined != nil {
			if patients, err = without(ctx, patients, o.joined); err != nil {
				return err
			}
		}
		for some := range slices.Chunk(patients, int(batch)) {
			if err := o.exportBlocks(ctx, some); err != nil {
				return err
			}
		}
	}
	return nil
}

// exportBlocks exports the blocks of the patients, ascending, and what was deleted of them.
func (o *organizer) exportBlocks(ctx context.Context, patients []string) error {
	if o.unit.Scope != export.ScopeGone {
		blocks, err := o.gather(ctx, patients)
		switch {
		case err == nil:
			err = o.write(patients, blocks)
		case !errors.Is(err, errTooLarge):
		case len(patients) > 1:
			half := len(patients) / 2
			if err := o.exportBlocks(ctx, patients[:half]); err != nil {
				return err
			}
			return o.exportBlocks(ctx, patients[half:])
		default:
			err = o.stream(ctx, patients[0])
		}
		if err != nil {
			return err
		}
	}
	for _, p := range o.passes {
		if !p.writes {
			continue
		}
		p.guard.request(patients)
		if err := o.exportDeleted(ctx, o.job, p.unit, &p.guard, &sink{gone: o.gone}); err != nil {
			return err
		}
	}
	return nil
}

// block is the block of one patient in memory, without its header.
type block struct {
	text []byte // lines, each with its newline
	refs refSet
}

// gather reads the blocks of the patients into memory, or returns errTooLarge. Only a success changes the numbers.
func (o *organizer) gather(ctx context.Context, patients []string) (_ []block, err error) {
	blocks := make([]block, len(patients))
	var n numbers
	undo := o.attached.mark()
	defer func() {
		if err != nil {
			undo()
		}
	}()
	room := o.blockMemory
	hold := func(at int, line []byte) error {
		if room -= int64(len(line)) + 1; room < 0 {
			return errTooLarge
		}
		blocks[at].text = append(append(blocks[at].text, line...), '\n')
		return nil
	}
	for _, p := range o.passes {
		err := o.read(ctx, p, patients, &n, func(r source.Resource, line []byte, owners []int) error {
			for _, at := range owners {
				room -= o.companions.referenced(r, &blocks[at].refs)
				if !p.writes {
					continue
				}
				if err := hold(at, line); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	if err := o.companions.prefetch(ctx, blocks); err != nil {
		return nil, err
	}
	for at := range blocks {
		err := o.companions.each(ctx, &blocks[at].refs, &n, func(line []byte) error { return hold(at, line) })
		if err != nil {
			return nil, err
		}
	}
	if room < 0 {
		return nil, errTooLarge
	}
	o.merge(&n)
	return blocks, nil
}

// write writes blocks from memory.
func (o *organizer) write(patients []string, blocks []block) error {
	for at, b := range blocks {
		if err := o.out.begin(patients[at], int64(len(b.text))); err != nil {
			return err
		}
		for line := range bytes.Lines(b.text) {
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
	var refs refSet
	if err := o.out.begin(patient, o.cfg.FileBytes); err != nil {
		return err
	}
	for _, p := range o.passes {
		err := o.read(ctx, p, []string{patient}, &n, func(r source.Resource, line []byte, _ []int) error {
			o.companions.referenced(r, &refs)
			if !p.writes {
				return nil
			}
			return o.out.line(line)
		})
		if err != nil {
			return err
		}
	}
	if err := o.companions.each(ctx, &refs, &n, o.out.line); err != nil {
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
			if p.writes {
				n.withhold(r.Type, p.guard.why)
			}
			return nil
		}
		owners := p.guard.owners(r)
		line, err := p.chain.pass(r.Body)
		if err != nil {
			return err
		}
		if p.writes {
			n.pass(r.Type, int64(len(owners)), line != nil)
		}
		if line == nil {
			return nil
		}
		if p.writes {
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

// numbers are the numbers of an organized unit. The zero value is ready to use.
type numbers struct {
	types map[string]*export.TypeNumbers
	left  export.Tally
}

func (n *numbers) of(typ string) *export.TypeNumbers {
	if n.types == nil {
		n.types = map[string]*export.TypeNumbers{}
	}
	if n.types[typ] == nil {
		n.types[typ] = &export.TypeNumbers{Type: typ}
	}
	return n.types[typ]
}

func (n *numbers) withhold(typ string, why export.Reason) {
	n.of(typ).Found++
	n.of(typ).Withheld++
	n.left.Add(typ, why, 1)
}

// pass counts a resource of so many blocks that passed the chain, or did not.
func (n *numbers) pass(typ string, blocks int64, written bool) {
	n.of(typ).Found += blocks
	if written {
		n.of(typ).Written += blocks
	} else {
		n.of(typ).Filtered += blocks
	}
}

func (n *numbers) add(more *numbers) {
	for typ, m := range more.types {
		t := n.of(typ)
		t.Found += m.Found
		t.Written += m.Written
		t.Filtered += m.Filtered
		t.Withheld += m.Withheld
	}
	n.left.AddAll(more.left.List())
}

// list returns the numbers by type.
func (n *numbers) list() (list []export.TypeNumbers) {
	for _, typ := range slices.Sorted(maps.Keys(n.types)) {
		list = append(list, *n.types[typ])
	}
	return list
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
