// Splitting a chunk by context word by word, where 64 words cannot be compared at once.
// Included inside the namespace of one instruction set, which has defined `Simd`.
//
// The rank of a word, the number of words of its context before it, is the place of its bit in the
// mask of its context. Only the bits of changed words are set.

template <class W>
class RankSplitter {
  public:
    RankSplitter(const Chunk& chunk, const Changed& changed, const Contexts<W>& contexts,
                 const Populous& populous, Scratch& scratch)
        : chunk_(chunk),
          changed_(changed),
          contexts_(contexts),
          populous_(populous),
          scratch_(scratch) {}

    void run(Split& out) {
        for (size_t name = 1; name <= populous_.named; ++name) {
            // Memory that is not written costs nothing.
            out.bitmaps[name] = scratch_.array<uint8_t>(chunk_.words / 8 + kTile + kZeros);
        }
        uint8_t* names = out.names;
        Tiles<W> tiles(chunk_, contexts_, scratch_);
        while (tiles.next()) {
            clear(out);
            const uint8_t* own = populous_.is_sparse
                                     ? rank_few(tiles, out.counts)
                                     : rank(tiles.find_names(), tiles.groups(), out.counts);
            uint64_t changed[kGroups];
            tiles.read_mask(changed_.mask, changed);
            const size_t number = list_places(changed, tiles.groups(), places_);
            for (size_t i = 0; i < number; ++i) {
                const size_t place = places_[i], name = own[place];
                names[i] = uint8_t(name);
                if (name == 0) continue;
                const uint32_t rank = ranks_[place];
                out.bitmaps[name][rank / 8] |= uint8_t(1 << rank % 8);
            }
            names += number;
        }
        std::memset(names, 0, 64);
        for (size_t start = 0; start < changed_.number; start += kTile) {
            const size_t left = changed_.number - start;
            Simd::count_names(out.names + start, groups_of(left < kTile ? left : kTile),
                              populous_.named, out.changed + 1);
        }
    }

  private:
    static constexpr size_t kZeros = 4096;  // bytes of a mask that are set to 0 at a time

    // Sets the bits to 0 that the words of a tile may have.
    void clear(const Split& out) {
        for (size_t name = 1; name <= populous_.named; ++name) {
            if ((out.counts[name] + kTile) / 8 + 8 <= cleared_[name]) continue;
            std::memset(out.bitmaps[name] + cleared_[name], 0, kZeros);
            cleared_[name] += kZeros;
        }
    }

    const uint8_t* rank_few(Tiles<W>& tiles, uint64_t* counts) {
        uint8_t names[kTile + kParts];
        uint16_t places[kTile + kParts];
        const size_t found = tiles.find_few(names, places);
        const size_t part = part_of(found);
        PartCounts parts = {};
        count_few(names, part, parts);
        std::memset(names_, 0, sizeof names_);
        for (size_t i = 0; i < found; ++i) names_[places[i]] = names[i];
        put(names, part, parts, counts, [&](size_t i) { return places[i]; });
        return names_;
    }

    const uint8_t* rank(const uint8_t* names, size_t groups, uint64_t* counts) {
        PartCounts parts = {};
        count_parts(names, groups, populous_.named, parts);
        put(names, kPart, parts, counts, [](size_t i) { return i; });
        return names;
    }

    // Gives the words at place(i) their ranks, and counts them.
    template <class Place>
    void put(const uint8_t* names, size_t part, const PartCounts& parts, uint64_t* counts,
             Place place) {
        uint32_t next[kParts][kMaxContexts + 1] = {};
        for (size_t name = 1; name <= populous_.named; ++name) {
            for (size_t p = 0; p < kParts; ++p) {
                next[p][name] = uint32_t(counts[name]);
                counts[name] += parts[p][name];
            }
        }
        for (size_t i = 0; i < part; ++i) {
            for (size_t p = 0; p < kParts; ++p) {
                ranks_[place(p * part + i)] = next[p][names[p * part + i]]++;
            }
        }
    }

    const Chunk& chunk_;
    const Changed& changed_;
    const Contexts<W>& contexts_;
    const Populous& populous_;
    Scratch& scratch_;
    size_t cleared_[kMaxContexts + 1] = {};
    uint8_t names_[kTile];
    uint16_t places_[kTile + 3];
    uint32_t ranks_[kTile + 1];
};
