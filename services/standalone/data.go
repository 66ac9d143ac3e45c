package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/directory/filedir"
	"github.com/sluice-fhir/sluice/pkg/lines"
	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/pkg/token/development"
)

// groupsShown bounds the groups that are listed at start.
const groupsShown = 12

// contents is what a folder of resources holds.
type contents struct {
	dir                          string
	files                        int
	resources, patients, leftOut int64
	groups                       []group
	unserved                     int64 // Group resources that are not among groups
}

type group struct {
	id      string
	members int
}

// survey counts what was read from the folder. A folder without resources is an error: it is the wrong one.
func survey(ctx context.Context, dir string, from source.Source, groups *filedir.Groups) (contents, error) {
	c := contents{dir: dir}
	folder, err := lines.InFolder(dir)
	if err != nil {
		return c, fmt.Errorf("read the folder of resources: %w", err)
	}
	c.files = len(folder.Files)
	sizes, err := from.Sizes(ctx)
	if err != nil {
		return c, err
	}
	c.patients = sizes.Patients
	for _, size := range sizes.Types {
		c.resources += size.Resources
	}
	leftOut, err := from.LeftOut(ctx)
	if err != nil {
		return c, err
	}
	for _, each := range leftOut {
		c.leftOut += each.Count
	}
	ids, err := groups.IDs()
	if err != nil {
		return c, err
	}
	for n, id := range ids {
		g := group{id: id}
		if n >= groupsShown { // its size is not shown
			c.groups = append(c.groups, g)
			continue
		}
		if _, err := groups.Members(ctx, id, func(string) error { g.members++; return nil }); err != nil {
			return c, err
		}
		c.groups = append(c.groups, g)
	}
	c.unserved = max(sizes.Types["Group"].Resources-int64(len(ids)), 0)
	if c.resources == 0 {
		return c, fmt.Errorf("--data %s: no resource in %d files; it must hold NDJSON or Bundles of FHIR R4 (docs/data.md)",
			dir, c.files)
	}
	return c, nil
}

// String is one line for each fact.
func (c contents) String() string {
	var text strings.Builder
	fmt.Fprintf(&text, "Data: %s of %s, %s, %s\n", plural(c.files, "file"), c.dir, plural(c.resources, "resource"),
		plural(c.patients, "patient"))
	if c.leftOut > 0 {
		fmt.Fprintf(&text, "Left out of every export: %s or references; the warnings above give the reasons\n",
			plural(c.leftOut, "resource"))
	}
	if c.unserved > 0 {
		fmt.Fprintf(&text, "Warning: %s cannot be exported: not active, not readable, or in a file without Group in its name\n",
			plural(c.unserved, "group"))
	}
	if len(c.groups) == 0 {
		text.WriteString("Warning: there is no group, so nothing can be exported. Groups are read from files such as " +
			"Group.ndjson.\n")
		return text.String()
	}
	text.WriteString("Groups (members):")
	for _, g := range c.groups[:min(len(c.groups), groupsShown)] {
		fmt.Fprintf(&text, " %s (%d)", g.id, g.members)
	}
	if more := len(c.groups) - groupsShown; more > 0 {
		fmt.Fprintf(&text, " and %d more", more)
	}
	text.WriteString("\n")
	return text.String()
}

func plural[N int | int64](n N, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// errNoExample means that no token of the development issuer can export any group of the data.
var errNoExample = errors.New("no grant with the issuer " + development.IssuerName + " allows a group of the data")

// example returns a subject of the development issuer and a group that it may export: those of the access file, if there is
// one. Groups with members are preferred.
func example(access string, groups []group) (subject, id string, err error) {
	entries := []directory.GrantEntry{{Groups: directory.NameList{All: true}}}
	entries[0].Owner.Issuer, entries[0].Owner.Subject = development.IssuerName, demoSubject
	if access != "" {
		content, err := os.ReadFile(access)
		if err != nil {
			return "", "", err
		}
		if entries, err = directory.ParseGrants(content); err != nil {
			return "", "", err
		}
	}
	for _, entry := range entries {
		if entry.Owner.Issuer != development.IssuerName {
			continue
		}
		allowed := entry.Groups.Selection()
		for _, g := range groups {
			if allowed.Has(g.id) && (id == "" || g.members > 0) {
				subject, id = entry.Owner.Subject, g.id
				if g.members > 0 {
					return subject, id, nil
				}
			}
		}
	}
	if id == "" {
		return "", "", errNoExample
	}
	return subject, id, nil
}
