package synth

import (
	"context"
	"fmt"
)

const (
	groupsMade   = poolMade + day
	groupBuffer  = 64 << 10 // size of a written piece: the group of all patients does not fit in memory
	memberBytes  = len(`{"entity":{"reference":"Patient/00000000-0000-4000-8000-000000000000"}},`)
	groupBytes   = 1 << 10 // at most, of a group without its plain members
	retiredCount = 10      // patients of the group "retired", if there are so many
)

// group is one Group resource. Its members are those of the first patients for which has is true; nil means all.
type group struct {
	id, name string
	retired  bool
	first    int // number of candidate patients
	has      func(index int) bool
	mixed    bool // has the members of writeMixed instead
}

// size returns the number of members.
func (g *group) size() int {
	if g.has == nil {
		return g.first
	}
	count := 0
	for index := range g.first {
		if g.has(index) {
			count++
		}
	}
	return count
}

// groupList lists the groups of the population, in the order in which they are written:
//
//	all            every patient
//	hundred, ten   the first 100 and 10 patients, or fewer if there are fewer
//	empty          no patients
//	mixed          see writeMixed
//	retired        the first 10 patients, in an inactive group
//	payer-001...   disjoint groups that together hold every patient
func groupList(cfg Config, pool *pool) []group {
	groups := []group{
		{id: "all", name: "Everybody", first: cfg.Patients},
		{id: "hundred", name: "The first hundred", first: min(100, cfg.Patients)},
		{id: "ten", name: "The first ten", first: min(10, cfg.Patients)},
		{id: "empty", name: "Nobody"},
		{id: "mixed", name: "Members of all sorts", mixed: true},
		{id: "retired", name: "A group of the past", first: min(retiredCount, cfg.Patients), retired: true},
	}
	for payer := range cfg.Groups {
		groups = append(groups, group{
			id: fmt.Sprintf("payer-%03d", payer+1), name: fmt.Sprintf("Invented payer %d", payer+1),
			first: cfg.Patients,
			has:   func(index int) bool { return pool.payerDraw(index)%uint64(cfg.Groups) == uint64(payer) },
		})
	}
	return groups
}

// writeGroups writes Group.ndjson and returns the ids of the groups.
func writeGroups(ctx context.Context, cfg Config, pool *pool, out *output) ([]string, error) {
	w := groupWriter{pool: pool, out: out, patients: cfg.Patients}
	var names []string
	for _, g := range groupList(cfg, pool) {
		if err := w.write(ctx, &g); err != nil {
			return nil, fmt.Errorf("write group %s: %w", g.id, err)
		}
		names = append(names, g.id)
	}
	return names, nil
}

// groupWriter writes groups piece by piece, because one line may be as long as the population is large.
type groupWriter struct {
	pool     *pool
	out      *output
	patients int
	line     line
}

func (w *groupWriter) write(ctx context.Context, g *group) error {
	size := g.size()
	if g.mixed {
		size = w.mixedSize()
	}
	// The line is written in pieces, so its file is chosen by its maximum size.
	file := &w.out.files[groupKind]
	if file.size > 0 && file.size+int64(groupBytes+size*memberBytes) > w.out.limit {
		if err := w.out.roll(groupKind); err != nil {
			return err
		}
	}
	l := &w.line
	l.raw(`{"resourceType":"Group","id":"`, g.id, `","meta":{"versionId":"1"`).when("lastUpdated", groupsMade).raw(`}`)
	l.narrative(g.name, ".")
	l.bool("active", !g.retired).str("type", "person").bool("actual", true).str("name", g.name)
	l.key("quantity").int(size)
	switch {
	case g.mixed:
		w.writeMixed()
	case size > 0:
		if err := w.writeMembers(ctx, g); err != nil {
			return err
		}
	}
	l.close()
	return w.spill(ctx)
}

func (w *groupWriter) writeMembers(ctx context.Context, g *group) error {
	l := &w.line
	open := `,"member":[{"entity":`
	for index := range g.first {
		if g.has != nil && !g.has(index) {
			continue
		}
		l.raw(open).reference(w.patient(index)).raw(`}`)
		open = `,{"entity":`
		if len(l.buf) >= groupBuffer {
			if err := w.spill(ctx); err != nil {
				return err
			}
		}
	}
	l.raw(`]`)
	return nil
}

func (w *groupWriter) spill(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	err := w.out.append(groupKind, w.line.buf)
	w.line.buf = w.line.buf[:0]
	return err
}

func (w *groupWriter) patient(index int) reference {
	return reference{kind: patientKind, id: w.pool.patient(index)}
}

// mixedSize returns the number of members that writeMixed writes.
func (w *groupWriter) mixedSize() int { return 2 + min(5, w.patients) }

// writeMixed writes the members of the group "mixed": a Practitioner; patient 0 twice and patient 3, who joined in
// 2015, both active; patient 1, inactive; patient 2, whose period has ended; patient 4, whose period begins in 2999.
// In a population of fewer than five patients the missing ones are left out.
func (w *groupWriter) writeMixed() {
	l := &w.line
	doctor := w.pool.practitioners[0]
	doctor.display = ""
	l.raw(`,"member":[{"entity":`).reference(doctor).raw(`}`)
	for index := range min(5, w.patients) {
		l.raw(`,{"entity":`).reference(w.patient(index))
		switch index {
		case 0:
			l.bool("inactive", false).raw(`},{"entity":`).reference(w.patient(index))
		case 1:
			l.bool("inactive", true)
		case 2:
			l.period("period", poolMade, poolMade+year)
		case 3:
			l.raw(`,"period":{"start":"2015-01-01T00:00:00Z"}`)
		case 4:
			l.raw(`,"period":{"start":"2999-01-01T00:00:00Z"}`)
		}
		l.raw(`}`)
	}
	l.raw(`]`)
}
