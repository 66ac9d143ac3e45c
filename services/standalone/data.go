package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/directory/filedir"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/lines"
	"github.com/sluice-fhir/sluice/pkg/platform/plural"
	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/pkg/token/development"
)

// groupsShown bounds the groups that are listed at start.
const groupsShown = 12

// maxGroup is the size of the longest Group in bytes, as for a load.
const maxGroup = 256 << 20

// contents is what a folder of resources holds.
type contents struct {
	dir                 string
	files               int
	resources, patients int64
	leftOut             int64 // resources and files that no export has
	foreign, unresolved int64 // references that are not followed: to other servers; to no resource, or several
	groups              []group
	unread              []string // groups that cannot be exported although they are active, with their files
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
	if c.resources == 0 {
		return c, fmt.Errorf("--data %s: no resource in %s; it must hold NDJSON or Bundles of FHIR R4 (docs/data.md)",
			dir, plural.Of(c.files, "file"))
	}
	leftOut, err := from.LeftOut(ctx)
	if err != nil {
		return c, err
	}
	held := sizes.Types["Group"].Resources
	for _, each := range leftOut {
		if each.Type == "Group" { // a limit of resources is none of groups
			held += each.Count
		}
		switch each.Reason {
		case export.ForeignReference:
			c.foreign += each.Count
		case export.UnresolvedReference:
			c.unresolved += each.Count
		default:
			c.leftOut += each.Count
		}
	}
	ids, err := groups.IDs(ctx)
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
	if held > int64(len(ids)) {
		c.unread, err = unread(ctx, folder.Files, groups)
	}
	return c, err
}

// unread returns the active groups of the files that are no groups of the directory, each with a file. They are in files
// that the directory does not read. Groups that it read and refused are not among them: those that are inactive or
// definitional on purpose, and those that cannot be read, which it has logged.
func unread(ctx context.Context, files []lines.File, groups *filedir.Groups) ([]string, error) {
	var mu sync.Mutex
	found, retired := map[string]string{}, map[string]bool{}
	r := lines.Reader{
		BlockSize: 1 << 20, MaxLine: maxGroup, Takers: 1,
		Open: func(n int) (lines.Text, error) { return openText(files[n]) },
		// The source has logged it.
		Broken: func(int, error) {},
	}
	err := r.Read(ctx, files, func(_ context.Context, b *lines.Block) error {
		mu.Lock()
		defer mu.Unlock()
		for line := range b.Lines {
			var g struct {
				ResourceType, ID string
				Active, Actual   *bool
			}
			if !bytes.Contains(line.Body, []byte(`"Group"`)) || json.Unmarshal(line.Body, &g) != nil || g.ResourceType != "Group" {
				continue
			}
			if g.Active != nil && !*g.Active || g.Actual != nil && !*g.Actual {
				retired[g.ID] = true
			}
			found[g.ID] = files[b.File].Name()
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var list []string
	for _, id := range slices.Sorted(maps.Keys(found)) {
		err := groups.Exists(ctx, id)
		switch {
		case errors.Is(err, directory.ErrNoGroup) && !retired[id]:
			list = append(list, fmt.Sprintf("%s (%s)", id, found[id]))
		case err != nil && !errors.Is(err, directory.ErrNoGroup) && !errors.Is(err, directory.ErrUnreadable):
			return nil, err
		}
	}
	return list, nil
}

// openText opens a file as NDJSON. The text closes the file.
func openText(file lines.File) (lines.Text, error) {
	opened, err := file.Open()
	if err != nil {
		return lines.Text{}, err
	}
	text, err := lines.Open(file.Name(), maxGroup, false, func() io.Reader {
		return io.NewSectionReader(opened, 0, file.Size)
	})
	if err != nil {
		return lines.Text{}, errors.Join(err, opened.Close())
	}
	text.Closer = both{text.Closer, opened}
	return text, nil
}

// both closes a text and then its file.
type both struct{ text, file io.Closer }

func (b both) Close() error { return errors.Join(b.text.Close(), b.file.Close()) }

// String is one line for each fact.
func (c contents) String() string {
	var text strings.Builder
	fmt.Fprintf(&text, "Data: %s of %s, %s, %s\n", plural.Of(c.files, "file"), c.dir, plural.Of(c.resources, "resource"),
		plural.Of(c.patients, "patient"))
	if c.leftOut > 0 {
		fmt.Fprintf(&text, "Left out of every export: %s; the warnings above give the reasons\n",
			plural.Of(c.leftOut, "resource or file", "resources or files"))
	}
	if c.foreign > 0 {
		fmt.Fprintf(&text, "Not followed: %s to other servers; nothing of this data is missing for that\n",
			plural.Of(c.foreign, "reference"))
	}
	if c.unresolved > 0 {
		fmt.Fprintf(&text, "Not followed: %s that match no resource of the data, or several\n",
			plural.Of(c.unresolved, "reference"))
	}
	if n := len(c.unread); n > 0 {
		fmt.Fprintf(&text, "Warning: %s cannot be exported: %s", plural.Of(n, "group"), strings.Join(c.unread[:min(n, 5)], ", "))
		if n > 5 {
			fmt.Fprintf(&text, " and %d more", n-5)
		}
		text.WriteString(". " + groupFiles + "\n")
	}
	if c.patients == 0 {
		text.WriteString("Warning: the data has no Patient, so every export is empty or counts its members as missing.\n")
	}
	if len(c.groups) == 0 {
		text.WriteString("Warning: there is no group, so nothing can be exported.")
		if len(c.unread) == 0 { // else the rule is above
			text.WriteString(" " + groupFiles)
		}
		text.WriteString("\n")
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

// groupFiles is the rule of docs/access.md.
const groupFiles = "Groups are read from .ndjson and .jsonl files with Group in their names, such as Group.ndjson, " +
	"one resource per line."

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
