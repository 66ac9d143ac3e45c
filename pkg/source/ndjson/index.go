package ndjson

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"maps"
	"math"
	"runtime"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/zeebo/xxh3"
	"golang.org/x/sync/errgroup"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/lines"
	"github.com/sluice-fhir/sluice/pkg/references"
	"github.com/sluice-fhir/sluice/pkg/source"
)

// builder collects the lines of the files and builds the index.
type builder struct {
	files  []*file
	limits source.Limits
	seed   maphash.Seed // for checks and the first half of id hashes
	seed2  maphash.Seed // for the second half
	refs   *references.Table

	mu         sync.Mutex
	lists      map[string]*list    // by type
	several    map[uint64][]uint32 // numbers of the patients of a resource with several, by its place
	numbers    map[string]uint32   // patient id, or a sentinel of source -> number
	left       export.Tally
	unreadable []string                    // the first unreadable files, with the reasons
	first      map[export.LeftOut]location // the first place of each type and reason, with the count 0
	strays     []strays                    // by file
	holds      []bool                      // by file: it has a resource or a deletion
	bundles    bundlesInside

	bases    fhir.Bases
	servers  lines.Servers
	identity atomic.Uint64 // sum of what identify adds
}

// location is the place of a line or a file, for people.
type location struct {
	file int // -1: not opened
	line int64
	name string
}

// strays counts the lines of a file without a resourceType. If no line has one, and all are JSON, it is another
// file beside the data, such as a log; if they are not, it is damaged.
type strays struct {
	typed   bool
	damaged bool
	count   int64
	first   location
}

// bundlesInside are the names of files that have a Bundle among their lines, and were read as if they had none.
type bundlesInside map[string]bool

func (b bundlesInside) Error() string {
	return fmt.Sprintf("%d files changed while they were read: they have Bundles among their lines", len(b))
}

// found is one resource while the index is built. The home of its entry is the number of its patient, noPatient, or
// manyPatients.
type found struct {
	hash    [2]uint64 // replaces the id within the type
	updated int64     // microseconds since 1970, or math.MinInt64
	version int64     // 0: none
	entry
	why uint8 // of a resource without a patient: index of its reason in homeless; or refused or deletes
}

// found.why of lines that are not served. settle removes them.
const (
	refused = math.MaxUint8     // a version
	deletes = math.MaxUint8 - 1 // a Bundle that deletes the resource
)

// homeless are the reasons for resources without a patient.
var homeless = []export.Reason{
	export.NoPatient, export.InvalidSubject, export.UnresolvedPatient, export.ForeignPatient, export.TooManyReferences,
}

func (f *found) compareID(hash [2]uint64) int {
	return cmp.Or(cmp.Compare(f.hash[0], hash[0]), cmp.Compare(f.hash[1], hash[1]))
}

// list has the resources of one type in chunks, so that it grows without copying, which would double the memory.
type list struct {
	chunks [][]found
	n      int
	former []previous // in the order of the hashes
}

const chunkSize = 1 << 13

func (l *list) at(i int) *found { return &l.chunks[i/chunkSize][i%chunkSize] }

func (l *list) add(f found) {
	if l.n%chunkSize == 0 {
		l.chunks = append(l.chunks, make([]found, 0, min(l.n, chunkSize))) // the first one grows: many types are small
	}
	last := &l.chunks[len(l.chunks)-1]
	*last = append(*last, f)
	l.n++
}

func (l *list) Len() int      { return l.n }
func (l *list) Swap(i, j int) { a, b := l.at(i), l.at(j); *a, *b = *b, *a }

// Less orders by id and place.
func (l *list) Less(i, j int) bool {
	a, b := l.at(i), l.at(j)
	return cmp.Or(a.compareID(b.hash), cmp.Compare(a.place, b.place)) < 0
}

// replaces reports whether f, which has the higher place, is to be served instead of an older version (spec 11). A refused
// line, such as one of a partial download, does not withhold a good one of the same version.
func (f *found) replaces(other *found) bool {
	numbered := f.version > 0 && other.version > 0
	switch {
	case numbered && f.version != other.version:
		return f.version > other.version
	case numbered && f.updated == other.updated && f.why == refused:
		return other.why == refused
	}
	return f.updated >= other.updated
}

// settle sorts the list and keeps one version of each resource (L-14: no duplicate id), or none if that is refused or
// deleted. What the resource was before goes into former, unless its patients are the same.
func (l *list) settle(differ func(before, now *found) bool) {
	sort.Sort(l)
	kept := 0
	for i := 0; i < l.n; {
		now, before, next := l.last(i, differ)
		i = next
		served := now.why != refused && now.why != deletes
		switch {
		case before == nil:
		case before.why == deletes && !served:
			l.former = append(l.former, previous{*before, before.place})
		case before.why != deletes && (!served || differ(before, now)):
			l.former = append(l.former, previous{*before, now.place})
		}
		if served {
			*l.at(kept) = *now
			kept++
		}
	}
	l.n = kept
}

// last goes through the lines of the resource of line i in the order of their places. It returns the line that decides what
// is served, the last version that was served before it and is about other patients or was deleted, and the index of the
// next resource. Without such a version it returns a deletion, or nil.
func (l *list) last(i int, differ func(before, now *found) bool) (now, before *found, next int) {
	deleted := uint64(0) // the place after the last deletion
	for next = i; next < l.n && (next == i || l.at(next).hash == now.hash); next++ {
		f, was := l.at(next), now
		switch {
		case f.why == deletes:
			deleted = f.place + 1
			if now = f; was == nil || was.why == refused || was.why == deletes {
				was = f
			}
		case now == nil, now.why == deletes:
			now = f
			continue
		case f.replaces(now):
			now = f
		default: // it follows a newer one
			was = f
			if before != nil && before.place >= deleted && !f.replaces(before) {
				continue
			}
		}
		switch {
		case was.why == refused:
		case was.why == deletes && before != nil:
		case was.why != deletes && now.why != deletes && now.why != refused && !differ(was, now):
		default:
			before = was
		}
	}
	return now, before, next
}

// find returns the resource with the id hash in a settled list, or nil.
func (l *list) find(hash [2]uint64) *found {
	if l == nil {
		return nil
	}
	if i, held := sort.Find(l.n, func(i int) int { return -l.at(i).compareID(hash) }); held {
		return l.at(i)
	}
	return nil
}

func newBuilder(files []*file, seed maphash.Seed, config Config) *builder {
	return &builder{
		files: files, limits: config.Limits, seed: seed, seed2: maphash.MakeSeed(), refs: references.New(config.Bases),
		bases: config.Bases,
		lists: map[string]*list{}, several: map[uint64][]uint32{},
		numbers: map[string]uint32{}, first: map[export.LeftOut]location{}, strays: make([]strays, len(files)),
		holds: make([]bool, len(files)), bundles: bundlesInside{},
	}
}

func (b *builder) hash(id string) [2]uint64 {
	return [2]uint64{maphash.String(b.seed, id), maphash.String(b.seed2, id)}
}

// namedFiles is how many unreadable files are named.
const namedFiles = 20

// leaveOut counts one more of what is not served.
func (b *builder) leaveOut(typ string, reason export.Reason, at location) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left.Add(typ, reason, 1)
	if reason == export.UnreadableFile && len(b.unreadable) < namedFiles {
		b.unreadable = append(b.unreadable, at.name)
	}
	key := export.LeftOut{Type: typ, Reason: reason}
	if known, found := b.first[key]; !found || cmp.Or(cmp.Compare(at.file, known.file), cmp.Compare(at.line, known.line)) < 0 {
		b.first[key] = at
	}
}

// stray counts a line without a resourceType.
func (b *builder) stray(file int, at location, body []byte) {
	valid := json.Valid(body)
	b.mu.Lock()
	defer b.mu.Unlock()
	s := &b.strays[file]
	s.damaged = s.damaged || !valid
	if s.count++; s.count == 1 || at.line < s.first.line {
		s.first = at
	}
}

// number returns the number of a patient id. The caller holds mu or is the only goroutine.
func (b *builder) number(id string) uint32 {
	number, ok := b.numbers[id]
	if !ok {
		number = uint32(len(b.numbers))
		b.numbers[strings.Clone(id)] = number
	}
	return number
}

// read adds every line of the files.
func (b *builder) read(ctx context.Context, spoolDir string) error {
	files := make([]lines.File, len(b.files))
	for i, f := range b.files {
		files[i] = lines.File{Path: f.name, Size: f.size}
	}
	r := lines.Reader{
		BlockSize: blockSize, MaxLine: b.limits.MaxLine, Takers: runtime.GOMAXPROCS(0),
		Open: func(file int) (lines.Text, error) { return b.files[file].text(spoolDir, b.limits.MaxLine) },
		Broken: func(file int, err error) {
			b.leaveOut("", export.UnreadableFile, location{file, math.MaxInt64, fmt.Sprintf("%s: %v", b.files[file].name, err)})
		},
		Base: func(file int, base, place string, _ int64) { b.servers.Add(base, b.files[file].name+" "+place) },
	}
	if err := r.Read(ctx, files, b.take); err != nil {
		return err
	}
	if len(b.bundles) > 0 {
		return b.bundles
	}
	for i, f := range b.files {
		if !b.holds[i] {
			continue
		}
		if err := f.unchanged(); err != nil {
			return err
		}
	}
	for _, s := range b.strays {
		switch {
		case s.typed && s.count > 0:
			b.leaveOut("", export.Malformed, s.first)
			b.left.Add("", export.Malformed, s.count-1)
		case s.damaged:
			b.leaveOut("", export.UnreadableFile, s.first)
		}
	}
	return nil
}

// take adds every line of the block.
func (b *builder) take(_ context.Context, block *lines.Block) error {
	var scanner fhir.Scanner
	var patients []string
	typed := false
	for line := range block.Lines {
		at := location{block.File, line.Number, b.files[block.File].name + " " + block.Place(line)}
		if line.Offset > placeMask {
			return fmt.Errorf("%s holds more than %d bytes", b.files[block.File].name, int64(placeMask))
		}
		if line.TooLong {
			typed = true
			if err := b.refuse(line, fhir.PeekType(line.Body), export.TooLong, at); err != nil {
				return err
			}
			continue
		}
		facts, err := scanner.Scan(line.Body)
		if err != nil && !errors.Is(err, fhir.ErrTooMany) && !errors.Is(err, fhir.ErrNoID) && facts.Type != "Bundle" {
			facts.Type = "" // perhaps that of the first of two lines without a line break
		}
		if facts.Type == "" && !bytes.Contains(line.Body, []byte(`"resourceType"`)) {
			b.stray(block.File, at, line.Body)
			continue
		}
		typed = true
		place := uint64(block.File)<<placeBits | uint64(line.Offset)
		switch {
		case facts.Type == "Bundle":
			if err := b.takeBundle(line, place, at); err != nil {
				return err
			}
			continue
		case facts.Type != "" && !fhir.IsType(facts.Type):
			b.leaveOut("", export.UnknownType, at)
			continue
		case facts.Type != "" && !fhir.IsStored(facts.Type): // it carries no data
			continue
		case errors.Is(err, fhir.ErrTooMany),
			err == nil && fhir.CountReferences(line.Body, b.limits.MaxReferences) > b.limits.MaxReferences:
			if err := b.refuse(line, facts.Type, export.TooManyReferences, at); err != nil {
				return err
			}
			continue
		case err != nil:
			if err := b.refuse(line, cmp.Or(facts.Type, fhir.PeekType(line.Body)), export.Malformed, at); err != nil {
				return err
			}
			continue
		}
		b.identify(line, block.File, true)
		f := b.found(facts, entry{place: place, check: maphash.Bytes(b.seed, line.Body), bytes: uint32(len(line.Body))})
		if b.refs.Note(line.Body) {
			f.bytes |= resolvable
		}
		patients = patients[:0]
		if facts.Type != "Provenance" && !f.resolvable() { // resolveProvenance and resolve find them
			patients = source.Named(patients, facts)
		}
		if err := b.add(facts.Type, f, patients); err != nil {
			return err
		}
	}
	if typed {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.strays[block.File].typed = true
	}
	return nil
}

// found returns the resource at e.
func (b *builder) found(facts fhir.Facts, e entry) found {
	f := found{
		hash: b.hash(facts.ID), updated: math.MinInt64, version: facts.Version, why: whyHomeless(facts), entry: e,
	}
	if !facts.LastUpdated.IsZero() {
		f.updated = facts.LastUpdated.UnixMicro()
	}
	return f
}

// refuse counts a line that is not served, and withholds the older versions of its resource.
func (b *builder) refuse(line lines.Line, typ string, reason export.Reason, at location) error {
	b.leaveOut(typ, reason, at)
	facts, told := source.Refused(line.Body)
	if !told {
		return nil
	}
	b.identify(line, at.file, false)
	f := b.found(facts, entry{place: uint64(at.file)<<placeBits | uint64(line.Offset)})
	f.why = refused
	return b.add(facts.Type, f, nil)
}

// identify adds a line that decides what is served to the identity of the data: a version, one that is refused, or a
// deletion. Its place ranks it. The number of the file would depend on files without resources.
func (b *builder) identify(line lines.Line, file int, good bool) {
	seed := xxh3.HashString(b.files[file].name) + uint64(line.Offset)
	if !good {
		seed = ^seed
	}
	b.identity.Add(xxh3.HashSeed(line.Body, seed))
}

// whyHomeless returns the index of the reason for which the line would have no patient.
func whyHomeless(facts fhir.Facts) uint8 {
	return uint8(slices.Index(homeless, source.Homeless(facts)))
}

// takeBundle takes a Bundle that deletes a resource.
func (b *builder) takeBundle(line lines.Line, place uint64, at location) error {
	ref, deleted := lines.Deletion(line.Body)
	if !deleted && b.files[at.file].expanded {
		b.leaveOut("", export.UnsupportedEntry, at)
		return nil
	}
	b.identify(line, at.file, true)
	if !deleted {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.bundles[b.files[at.file].name] = true
		return nil
	}
	if !fhir.IsStored(ref.Type) {
		return nil
	}
	e := entry{place: place, check: maphash.Bytes(b.seed, line.Body), bytes: uint32(len(line.Body))}
	return b.add(ref.Type, found{hash: b.hash(ref.ID), entry: e, why: deletes}, nil)
}

func (b *builder) add(typ string, f found, patients []string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	f.home = noPatient
	b.setPatients(&f.entry, b.numbersOf(patients))
	l := b.lists[typ]
	if l == nil {
		l = new(list)
		b.lists[typ] = l
	}
	l.add(f)
	b.holds[f.file()] = true
	if l.n >= math.MaxUint32 || len(b.numbers) >= manyPatients {
		return fmt.Errorf("more than %d resources of a type or %d patients", uint32(math.MaxUint32), manyPatients)
	}
	return nil
}

// numbersOf returns the numbers of patients.
func (b *builder) numbersOf(patients []string) []uint32 {
	var numbers []uint32
	for _, id := range patients {
		numbers = append(numbers, b.number(id))
	}
	return numbers
}

// patientsOf returns the numbers of the patients of a resource, each once.
func (b *builder) patientsOf(e *entry) []uint32 {
	switch e.home {
	case noPatient:
		return nil
	case manyPatients:
		return b.several[e.place]
	}
	return []uint32{e.home}
}

// setPatients sets the patients of a resource to numbers, each of which occurs once.
func (b *builder) setPatients(e *entry, numbers []uint32) {
	switch len(numbers) {
	case 0:
		e.home = noPatient
	case 1:
		e.home = numbers[0]
	default:
		e.home = manyPatients
		b.several[e.place] = numbers
	}
}

// finish builds the index of the source.
func (b *builder) finish(ctx context.Context, s *Source) error {
	s.identity = fmt.Sprintf("%016x", b.identity.Load())
	var settling errgroup.Group
	settling.SetLimit(4)
	for typ, l := range b.lists {
		differ := func(before, now *found) bool {
			return typ == "Provenance" || before.resolvable() || now.resolvable() || b.differ(before, now) // or perhaps
		}
		settling.Go(func() error { l.settle(differ); return ctx.Err() })
	}
	if err := settling.Wait(); err != nil {
		return err
	}
	if err := b.resolve(ctx, s); err != nil {
		return err
	}
	if err := b.resolveProvenance(ctx, s); err != nil {
		return err
	}
	if err := b.resolveFormer(ctx, s); err != nil {
		return err
	}
	s.patients = slices.Sorted(maps.Keys(b.numbers))
	ranks := make([]uint32, len(s.patients)) // of the numbers
	for rank, id := range s.patients {
		ranks[b.numbers[id]] = uint32(rank)
	}
	b.numbers = nil
	s.held = make([]bool, len(s.patients))
	for rank, id := range s.patients {
		s.held[rank] = b.lists["Patient"].find(b.hash(id)) != nil
	}
	s.sizes.Types = make(map[string]source.TypeSize, len(b.lists))
	s.kinds, s.several = make(map[string]kind, len(b.lists)), map[uint64][]uint32{}
	s.former = map[string][]former{}
	for typ := range b.lists {
		if err := ctx.Err(); err != nil {
			return err
		}
		b.shrinkFormer(s, typ, ranks)
		b.shrink(s, typ, ranks)
	}
	s.sizes.Patients = s.sizes.Types["Patient"].Resources
	s.leftOut = b.left
	return nil
}

// report logs what the index has and what it left out.
func (b *builder) report(ctx context.Context, log *slog.Logger, s *Source, folder lines.Folder) {
	var resources, bytes int64
	for _, size := range s.sizes.Types {
		resources += size.Resources
		bytes += size.Bytes
	}
	log.InfoContext(ctx, "folder of resources indexed", "files", len(s.files), "resources", resources,
		"bytes", bytes, "patients", s.sizes.Patients, "left_out", s.leftOut.Total())
	if several := b.servers.Several(b.bases); len(several) > 0 {
		log.WarnContext(ctx, "the Bundles are of several servers; resources of one type and id are taken for the same one",
			"servers", several)
	}
	if others := folder.Other; len(others) > 0 {
		const named = 5
		log.WarnContext(ctx, "files with other endings are passed by", "files", len(others),
			"first", strings.Join(others[:min(named, len(others))], ", "))
	}
	for i, stray := range b.strays {
		if stray.count > 0 && !stray.typed && !stray.damaged {
			log.WarnContext(ctx, "a file without resources is passed by", "file", b.files[i].name, "lines", stray.count)
		}
	}
	for _, file := range b.unreadable {
		log.WarnContext(ctx, "a file cannot be read to its end", "file", file)
	}
	for _, left := range s.leftOut.List() {
		first := b.first[export.LeftOut{Type: left.Type, Reason: left.Reason}]
		log.WarnContext(ctx, "resources are left out", "type", left.Type, "reason", left.Reason, "count", left.Count,
			"what", left.Reason.Text(), "first", first.name)
	}
}
