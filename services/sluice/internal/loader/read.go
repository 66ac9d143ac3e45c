package loader

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/sluice-fhir/sluice/pkg/directory/pgdir"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/lines"
	"github.com/sluice-fhir/sluice/pkg/references"
	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/pkg/source/postgres"
)

// Config configures a read.
type Config struct {
	source.Limits            // of a resource; a Group may have any number of references
	Bases         fhir.Bases // absolute references below them are local
}

// maxGroup is the size of the longest Group in bytes that the directory takes: its members are not held in memory. The
// resource is not stored beyond Config.MaxLine, because an export holds it whole.
const maxGroup = 256 << 20

// Sink receives the lines. Its functions are called from several goroutines at once, except for Resolve.
type Sink struct {
	Resources func(ctx context.Context, typ string, lines []postgres.Line) error // also refused ones
	// Group receives a line with a Group resource, perhaps a malformed one, before Resources does. A *pgdir.Problem is an
	// error in the line, another error ends the load. Places rank as in Line.
	Group func(ctx context.Context, place int64, line []byte) (pgdir.Added, error)
	// Delete receives resources and Groups to delete.
	Delete func(ctx context.Context, deletions []postgres.Deletion) error
	// Resolve offers what the store has to a table of which some references match nothing in the files.
	Resolve  func(ctx context.Context, table *references.Table) error
	Say      func(text string) // a message about a file or a line, for people
	Progress func(bytes int64) // reports more bytes read, as on disk
}

// Summary counts the lines.
type Summary struct {
	Resources map[string]int64 // passed on, by type
	Groups    int64            // passed on to Sink.Group, also those that are no Resources because of their length
	Bytes     int64            // of the resources, as NDJSON
	Deletions int64
	Ignored   map[string]int64 // of types that are never exported
	Undated   int64            // resources with a meta.lastUpdated that is not an instant
	LeftOut   []LeftOut        // sorted by type and reason
}

// LeftOut counts what is left out for one type and reason.
type LeftOut struct {
	export.LeftOut
	First string `json:"first,omitempty"` // place of the first one
}

// Unreadable returns the number of lines and files that may have resources that were not read.
func (s Summary) Unreadable() int64 {
	n := int64(0)
	for _, left := range s.LeftOut {
		if left.Type == "Group" && left.Reason == export.TooLong {
			continue // its version was read
		}
		switch left.Reason {
		case export.Malformed, export.TooLong, export.TooManyReferences, export.UnreadableFile, export.UnsupportedEntry:
			n += left.Count
		}
	}
	return n
}

// Read reads the files. Versions of one resource are ranked by the order of files and lines.
func Read(ctx context.Context, found Found, cfg Config, sink Sink) (Summary, error) {
	return read(ctx, found, cfg, sink, 4<<20)
}

// placeBits is the number of low bits of a place that hold the line number.
const placeBits = 40

// place ranks a line among all lines of all files.
func place(file int, line int64) int64 { return int64(file)<<placeBits | line }

func read(ctx context.Context, found Found, cfg Config, sink Sink, blockSize int) (Summary, error) {
	p := parser{
		cfg: cfg, files: found.Files, sink: sink, states: make([]state, len(found.Files)), table: references.New(cfg.Bases),
		sum:  Summary{Resources: map[string]int64{}, Ignored: map[string]int64{}},
		left: map[export.LeftOut]*tally{}, refused: map[fhir.Ref]bool{},
	}
	for _, broken := range found.Broken {
		p.leave(export.LeftOut{Reason: export.UnreadableFile}, tally{1, math.MaxInt64, broken.Name})
		sink.Say(fmt.Sprintf("%s: %v", broken.Name, broken.Err))
	}
	r := lines.Reader{
		BlockSize: blockSize, MaxLine: max(cfg.MaxLine, maxGroup) + 1, Open: p.open, Broken: p.broken,
		Takers: runtime.GOMAXPROCS(0) + 1, // one more than cores, because some wait for the database
	}
	r.Base = func(file int, base, place string, _ int64) { p.servers.Add(base, p.files[file].Path+" "+place) }
	if err := r.Read(ctx, p.files, p.takeLiteral); err != nil {
		return p.summary(), err
	}
	r.Base = nil
	if several := p.servers.Several(cfg.Bases); len(several) > 0 {
		sink.Say("the Bundles are of several servers; resources of one type and id are taken for the same one: " +
			strings.Join(several, ", "))
	}
	p.conclude()
	if !p.deferred() {
		return p.summary(), nil
	}
	// The first pass has reported what is broken.
	r.Broken = func(int, error) {}
	if types, ids := p.table.Wants(); ids || len(types) > 0 {
		err := r.Read(ctx, p.files, func(_ context.Context, b *lines.Block) error { p.offer(b, types, ids); return nil })
		if err != nil {
			return p.summary(), err
		}
		if err := sink.Resolve(ctx, p.table); err != nil {
			return p.summary(), err
		}
	}
	if err := r.Read(ctx, p.files, p.takeDeferred); err != nil {
		return p.summary(), err
	}
	for file := range p.files {
		if err := p.unchanged(file); err != nil {
			return p.summary(), err
		}
	}
	return p.summary(), nil
}

// takeLiteral is the first pass: it passes on the lines whose references are literal and notes the others.
func (p *parser) takeLiteral(ctx context.Context, b *lines.Block) error {
	batch := p.newBatch(b)
	for line := range b.Lines {
		facts, fate := batch.classify(line)
		switch {
		case fate != taken:
		case facts.Type == "Bundle":
			batch.delete(line)
		case facts.ID != "" && p.table.Note(line.Body): // a malformed line has no id here
			batch.deferred = true
		default:
			if err := batch.take(ctx, line, facts, line.Body); err != nil {
				return err
			}
		}
	}
	return batch.end(ctx)
}

// offer is the second pass: it offers what references may name, of the resources that the others take.
func (p *parser) offer(b *lines.Block, types []string, ids bool) {
	batch := p.newBatch(b)
	batch.again = true
	for line := range b.Lines {
		facts, fate := batch.classify(line)
		if fate != taken || facts.ID == "" || facts.Type == "Bundle" || p.isLongGroup(facts, line) {
			continue
		}
		ref := fhir.Ref{Type: facts.Type, ID: facts.ID}
		if ids {
			p.table.OfferID(ref)
		}
		if slices.Contains(types, ref.Type) && !p.refused[ref] { // else the load may withhold it, and confirm would fail
			p.table.Offer(ref, line.Body)
		}
	}
}

// takeDeferred is the third pass: it passes on the lines that the first one has noted.
func (p *parser) takeDeferred(ctx context.Context, b *lines.Block) error {
	if !p.state(b.File).deferred {
		return nil
	}
	batch := p.newBatch(b)
	batch.again = true
	for line := range b.Lines {
		facts, fate := batch.classify(line)
		if fate != taken || facts.Type == "Bundle" || facts.ID == "" || !p.table.Note(line.Body) {
			continue
		}
		if err := batch.takeResolved(ctx, line, facts); err != nil {
			return err
		}
	}
	return batch.end(ctx)
}

// batch is the work on one block.
type batch struct {
	*parser
	block     *lines.Block
	scanner   fhir.Scanner
	rescanner fhir.Scanner
	again     bool // the first pass has counted the lines

	resources map[string][]postgres.Line
	refused   map[string][]postgres.Line
	deletions []postgres.Deletion
	left      map[export.LeftOut]*tally
	ignored   map[string]int64
	groups    int64
	bytes     int64
	undated   int64
	typed     bool
	deferred  bool
}

func (p *parser) newBatch(b *lines.Block) *batch {
	return &batch{
		parser: p, block: b,
		resources: map[string][]postgres.Line{}, refused: map[string][]postgres.Line{},
		left: map[export.LeftOut]*tally{}, ignored: map[string]int64{},
	}
}

// fate is what becomes of a line.
type fate int

const (
	taken fate = iota
	passedBy
)

// classify reads the facts of a line and decides whether it is taken. A Bundle that is taken deletes a resource.
func (b *batch) classify(line lines.Line) (fhir.Facts, fate) {
	if line.TooLong {
		return fhir.Facts{}, b.refuse(line, "", export.TooLong, fmt.Sprintf("longer than %d bytes", max(b.cfg.MaxLine, maxGroup)))
	}
	facts, err := b.scanner.Scan(line.Body)
	typ := facts.Type
	b.typed = b.typed || typ != ""
	known := fhir.IsStored(typ)
	switch {
	case typ == "Bundle", typ == "Group": // malformed or not: takeGroup decides
		return facts, taken
	case errors.Is(err, fhir.ErrNoType), err != nil && typ == "" && line.Body[0] != '{' && json.Valid(line.Body) &&
		!bytes.Contains(line.Body, []byte(`"resourceType"`)):
		b.untyped(line)
		return facts, passedBy
	case errors.Is(err, fhir.ErrTooMany):
		return facts, b.refuse(line, typ, export.TooManyReferences, err.Error())
	case err != nil && !errors.Is(err, fhir.ErrNoID): // the type may be that of the first of two lines without a line break
		return facts, b.refuse(line, fhir.PeekType(line.Body), export.Malformed, err.Error())
	case err != nil && known:
		return facts, b.refuse(line, typ, export.Malformed, err.Error())
	case !fhir.IsType(typ):
		return facts, b.refuse(line, "", export.UnknownType, "not a resource type of FHIR R4")
	case !known:
		b.ignored[typ]++
		return facts, passedBy
	case len(line.Body) > b.cfg.MaxLine:
		return facts, b.refuse(line, typ, export.TooLong, fmt.Sprintf("longer than %d bytes", b.cfg.MaxLine))
	case fhir.CountReferences(line.Body, b.cfg.MaxReferences) > b.cfg.MaxReferences:
		return facts, b.refuse(line, typ, export.TooManyReferences, fmt.Sprintf("more than %d references", b.cfg.MaxReferences))
	}
	return facts, taken
}

// refuse leaves out a line, and reports it the first time. No older version of its resource is served instead.
func (b *batch) refuse(line lines.Line, typ string, reason export.Reason, what string) fate {
	if !b.again {
		b.leave(line, typ, reason)
		b.report(b.block.File, b.place(line)+": "+what)
		b.withhold(line)
	}
	return passedBy
}

// withhold passes on that a version of a resource is not stored.
func (b *batch) withhold(line lines.Line) {
	if facts, told := source.Refused(line.Body); told {
		at := place(b.block.File, line.Number)
		b.refused[facts.Type] = append(b.refused[facts.Type], postgres.Line{Place: at, Facts: facts})
	}
}

// leave counts what is left out of a line.
func (b *batch) leave(line lines.Line, typ string, reason export.Reason) {
	what := export.LeftOut{Type: typ, Reason: reason}
	if t := b.left[what]; t != nil {
		t.count++
		return
	}
	b.left[what] = &tally{1, place(b.block.File, line.Number), b.place(line)}
}

// place names a line for people.
func (b *batch) place(line lines.Line) string {
	return b.files[b.block.File].Path + " " + b.block.Place(line)
}

// delete takes a line that deletes a resource.
func (b *batch) delete(line lines.Line) {
	ref, ok := lines.Deletion(line.Body)
	switch {
	case !ok:
		b.refuse(line, "", export.UnsupportedEntry,
			"an entry that cannot be applied: no resource to store, or a Bundle as the resource, a PATCH or another method, a "+
				"DELETE without an id or of a version, an entry of a history Bundle, or a key that parsers read differently")
	case fhir.IsStored(ref.Type):
		b.deletions = append(b.deletions, postgres.Deletion{Place: place(b.block.File, line.Number), Ref: ref})
	default:
		b.ignored[ref.Type]++
	}
}

// takeResolved resolves the references of a resource and takes it.
func (b *batch) takeResolved(ctx context.Context, line lines.Line, facts fhir.Facts) error {
	body, changed := b.table.Resolve(nil, line.Body, facts, func(typ string, form fhir.Form) {
		switch {
		case typ != "" && !fhir.IsReferenced(typ): // it would not be followed
		case form == fhir.Foreign:
			b.leave(line, typ, export.ForeignReference)
		default:
			b.leave(line, typ, export.UnresolvedReference)
		}
	})
	if changed {
		typ := facts.Type
		var err error
		if facts, err = b.rescanner.Scan(body); err != nil { // more subjects than before
			b.leave(line, typ, export.TooManyReferences)
			b.report(b.block.File, b.place(line)+": "+err.Error())
			return nil //nolint:nilerr // it is reported
		}
	}
	return b.take(ctx, line, facts, body)
}

// takeGroup takes a Group into the directory, and reports whether its resource may be stored.
func (b *batch) takeGroup(ctx context.Context, line lines.Line, facts fhir.Facts, body []byte) (bool, error) {
	at, where := place(b.block.File, line.Number), b.place(line)
	group, err := b.sink.Group(ctx, at, body)
	if group.ID != "" {
		where += ": group " + group.ID
	}
	var problem *pgdir.Problem
	if err != nil && !errors.As(err, &problem) {
		return false, err
	}
	leave := func(reason export.Reason, what string) (bool, error) {
		b.leave(line, "Group", reason)
		b.report(b.block.File, where+": "+what)
		b.withhold(line)
		return false, nil
	}
	if problem != nil {
		return leave(export.Malformed, problem.Error())
	}
	for _, left := range group.LeftOut {
		b.parser.leave(export.LeftOut{Reason: left.Reason}, tally{left.Count, at, where})
		b.report(b.block.File, fmt.Sprintf("%s: %d left out: %s", where, left.Count, left.Reason.Text()))
	}
	b.groups++
	if facts.ID == "" { // the directory reads other keys
		_, err := b.rescanner.Scan(body)
		return leave(export.Malformed, fmt.Sprintf("the group is loaded, its resource is not: %v", err))
	}
	if b.isLongGroup(facts, line) {
		return leave(export.TooLong, fmt.Sprintf("the group is loaded, its resource is not: longer than %d bytes", b.cfg.MaxLine))
	}
	return true, nil
}

// isLongGroup reports whether the line is a Group that is too long to be stored as a resource.
func (p *parser) isLongGroup(facts fhir.Facts, line lines.Line) bool {
	return facts.Type == "Group" && len(line.Body) > p.cfg.MaxLine
}

// take takes a resource. body is its line, perhaps with its references resolved.
func (b *batch) take(ctx context.Context, line lines.Line, facts fhir.Facts, body []byte) error {
	at := place(b.block.File, line.Number)
	if facts.Type == "Group" {
		if stored, err := b.takeGroup(ctx, line, facts, body); err != nil || !stored {
			return err
		}
	}
	if facts.LastUpdated.IsZero() && isUndated(body) {
		b.undated++
	}
	if facts.Type != "Provenance" && fhir.InCompartment(facts.Type) && len(source.Named(nil, facts)) == 0 {
		b.leave(line, facts.Type, source.Homeless(facts))
	}
	facts.Subjects = slices.Clone(facts.Subjects) // the scanner reuses the slice
	b.resources[facts.Type] = append(b.resources[facts.Type], postgres.Line{Place: at, Facts: facts, Body: body})
	b.bytes += int64(len(body)) + 1
	return nil
}

// end passes the batch on and adds it to the summary.
func (b *batch) end(ctx context.Context) error {
	for _, lines := range []map[string][]postgres.Line{b.resources, b.refused} {
		for typ, staged := range lines {
			if err := b.sink.Resources(ctx, typ, staged); err != nil {
				return err
			}
		}
	}
	if len(b.deletions) > 0 {
		if err := b.sink.Delete(ctx, b.deletions); err != nil {
			return err
		}
	}
	for what, t := range b.left {
		b.parser.leave(what, *t)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, staged := range b.refused {
		for _, line := range staged {
			b.parser.refused[fhir.Ref{Type: line.Facts.Type, ID: line.Facts.ID}] = true
		}
	}
	s := &b.states[b.block.File]
	s.typed = s.typed || b.typed
	s.deferred = s.deferred || b.deferred
	s.used = s.used || len(b.resources)+len(b.deletions) > 0 || b.groups > 0
	for typ, staged := range b.resources {
		b.sum.Resources[typ] += int64(len(staged))
	}
	b.sum.Groups += b.groups
	if !b.again {
		for typ, n := range b.ignored {
			b.sum.Ignored[typ] += n
			s.ignored += n
		}
	}
	b.sum.Deletions += int64(len(b.deletions))
	b.sum.Bytes += b.bytes
	b.sum.Undated += b.undated
	return nil
}

// untyped notes a line without a resourceType. Whether it is left out shows at the end of the file.
func (b *batch) untyped(line lines.Line) {
	if b.again {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	s := &b.states[b.block.File]
	s.untyped++
	if at := place(b.block.File, line.Number); s.untyped == 1 || at < s.firstUntyped {
		s.firstUntyped, s.firstUntypedPlace = at, b.place(line)
	}
}

// parser is the state of a read.
type parser struct {
	cfg   Config
	files []lines.File
	sink  Sink
	table *references.Table

	mu     sync.Mutex
	states []state // of the files
	sum    Summary
	left   map[export.LeftOut]*tally // by type and reason

	servers lines.Servers
	refused map[fhir.Ref]bool // resources of which a version is refused; complete after the first pass
}

// tally counts one type and reason.
type tally struct {
	count, first int64
	place        string
}

// leave counts what is left out.
func (p *parser) leave(what export.LeftOut, more tally) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.left[what]
	if t == nil {
		t = &tally{first: more.first, place: more.place}
		p.left[what] = t
	}
	t.count += more.count
	if more.first < t.first {
		t.first, t.place = more.first, more.place
	}
}

// reported is the number of places that are reported of one file.
const reported = 10

// report reports a line of a file, unless there are too many.
func (p *parser) report(file int, text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.states[file].reports++; p.states[file].reports <= reported {
		p.sink.Say(text)
	}
}

// broken reports a file whose rest cannot be read.
func (p *parser) broken(file int, err error) {
	p.leave(export.LeftOut{Reason: export.UnreadableFile}, tally{1, place(file, 0), p.files[file].Path})
	p.report(file, fmt.Sprintf("%s: %v", p.files[file].Path, err))
	p.mu.Lock()
	defer p.mu.Unlock()
	p.states[file].broken = true
}

// conclude ends the first pass.
func (p *parser) conclude() {
	for file := range p.files {
		p.states[file].concluded = true
		s, path := p.state(file), p.files[file].Path
		switch {
		case s.untyped > 0 && (s.typed || s.reports > 0 || s.broken):
			p.leave(export.LeftOut{Reason: export.Malformed}, tally{s.untyped, s.firstUntyped, s.firstUntypedPlace})
			p.report(file, fmt.Sprintf("%s: %v", s.firstUntypedPlace, fhir.ErrNoType))
			p.states[file].reports += int(s.untyped) - 1
		case s.untyped > 0:
			p.sink.Say(path + ": passed by, no line has a resourceType")
		case s.ignored > 0 && !s.used && !s.deferred && s.reports == 0:
			p.sink.Say(path + ": passed by, all of its resources are of types that are never exported")
		}
		if more := p.states[file].reports - reported; more > 0 {
			p.sink.Say(fmt.Sprintf("%s: and %d more", path, more))
		}
	}
}

func (p *parser) state(file int) state {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.states[file]
}

func (p *parser) deferred() bool {
	return slices.ContainsFunc(p.states, func(s state) bool { return s.deferred })
}

// summary returns the counts.
func (p *parser) summary() Summary {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all export.Tally
	for what, t := range p.left {
		all.Add(what.Type, what.Reason, t.count)
	}
	sum := p.sum
	for _, left := range all.List() {
		first := p.left[export.LeftOut{Type: left.Type, Reason: left.Reason}].place
		sum.LeftOut = append(sum.LeftOut, LeftOut{LeftOut: left, First: first})
	}
	return sum
}
