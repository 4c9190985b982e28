/* The commit and gc as a model for the checker spin. README.md beside this file says how to run it, and what it showed.

   One store path is wanted. Publishers see to it that the cache lists it, and then may merge what is listed, beside runs
   of gc that found the path dead; any of them may be killed between two requests. A request to the registry is one atomic
   step, and nothing else is: the registry offers no more than that. The clock counts whole steps, and may tick between
   any two requests. */

/* Sizes: each can be set by -D. */
#ifndef PUBLISHERS
#define PUBLISHERS 1
#endif
#ifndef MERGES
#define MERGES 0            /* whether a publisher merges what is listed: 1 once it is done, 2 before, as after another path */
#endif
#ifndef COLLECTORS
#define COLLECTORS 1        /* gc processes beside each other */
#endif
#ifndef RUNS
#define RUNS 3              /* of the first gc, one after another: to mark, to unlist, to delete */
#endif
#ifndef SEGMENTS
#define SEGMENTS 4
#endif
#ifndef GRACE
#define GRACE 2
#endif
#ifndef LONGEST
#define LONGEST (GRACE - 1) /* no publish lasts longer: what everything rests on */
#endif
#ifndef SKEW
#define SKEW 0              /* how far the clocks of publishers and gcs may be off, either way */
#endif
#ifndef TRIES
#define TRIES 2             /* to write an index */
#endif
#ifndef SLOW_WRITES
#define SLOW_WRITES 0       /* whether the clock may tick between gc's last look at the index and its write */
#endif
#ifndef RUNS_AT_ONCE
#define RUNS_AT_ONCE 0      /* whether a gc may begin as soon as the last one ended */
#endif
#ifndef SLOW_GC
#define SLOW_GC 0           /* whether a run of gc may last longer than a publish */
#endif
#ifndef APART
#define APART 0             /* ticks before a second publisher begins, and as many again before gc does: a smaller search */
#endif
#ifndef REPLACES
#define REPLACES 0          /* whether gc may replace a good segment by a new one: rewriting, merging */
#endif

/* Rules: each can be weakened by -D, and then spin finds how something is lost. */
#ifndef MARK_AGE
#define MARK_AGE GRACE      /* how old a mark has to be */
#endif
#ifndef MARGIN
#define MARGIN GRACE        /* how far the watermark stays behind */
#endif

#define FIRST (2 * GRACE + SKEW + 1)    /* the clock at the start: the old segment is past every age */
#ifndef TICKS
#define TICKS (GRACE + 2)
#endif
#define END (FIRST + TICKS)

#define ONE(s) (1 << (s))
#define HAS(set, s) (((set) >> (s)) & 1)

typedef Marks {
    byte at[SEGMENTS]           /* of each segment: when it was condemned; 0 if it is not */
};

byte clock = FIRST;

/* The registry. Sets of segments are bit sets; a segment is there, with its tag, while it is in `pushed`. */
byte used = 1;              /* segments that were made so far; the first holds the path, for no root */
byte pushed = 1;
byte lists = 1;             /* segments whose table lists the path */
byte holds = 1;             /* those with its NAR as well */
byte merges[SEGMENTS];      /* what a merged segment names: the segments that it took in */
byte records[SEGMENTS];     /* whose roots a segment records: a bit for each publisher */
byte created[SEGMENTS];     /* the time in its tag */

/* The tag cache-index. */
byte listed = 1;
Marks marks;
byte watermark = 0;

byte done;                  /* publishers that ended well */
byte killed;                /* publishers that are not to go on */
byte begun[PUBLISHERS];     /* when; 0 while it does not run */
byte collecting[COLLECTORS];    /* when a gc began; 0 while it does not run, or may be slow */
byte writing;               /* gcs between their last look at the index and their write */

#define IS_PAST(s, mark, now) (!HAS(pushed, s) || (mark.at[s] + MARK_AGE <= now && created[s] + MARGIN < now))
#ifdef AGE_AT_WRITE
#define IS_OLD(s, mark, now) true
#define IS_OLD_AT_WRITE(s, mark) IS_PAST(s, mark, clock)
#else
#define IS_OLD(s, mark, now) IS_PAST(s, mark, now)
#define IS_OLD_AT_WRITE(s, mark) true
#endif

/* One read of the index, and the union with the tags that were listed before. */
inline read_index(by_tag, by_index, marked, oldest, all) {
    by_index = listed;
    oldest = watermark;
    all = listed;
    s = 0;
    do
    :: s < SEGMENTS ->
        marked.at[s] = marks.at[s];
        if
        :: HAS(by_tag, s) && created[s] >= watermark -> all = all | ONE(s)
        :: else
        fi;
        s++
    :: else -> break
    od;
    s = 0
}

inline write_index(all, marked, oldest) {
    listed = all;
    watermark = oldest;
    s = 0;
    do
    :: s < SEGMENTS ->
        marks.at[s] = (HAS(all, s) -> marked.at[s] : 0);
        s++
    :: else -> break
    od;
    s = 0
}

inline read_back(all, marked, oldest, is_same) {
    is_same = (listed == all && watermark == oldest);
    s = 0;
    do
    :: s < SEGMENTS ->
        is_same = (is_same && (!HAS(all, s) || marks.at[s] == marked.at[s]));
        s++
    :: else -> break
    od;
    s = 0
}

/* What is not needed any more is no part of the state. */
inline forget(by_tag, oldest, all, marked) {
    by_tag = 0;
    oldest = 0;
    all = 0;
    do
    :: s < SEGMENTS -> marked.at[s] = 0; s++
    :: else -> break
    od;
    s = 0
}

/* How a publisher lists its own segments. */
inline list_segments(me, own) {
    tries = 0;
    do
    :: tries < TRIES ->
        tries++;
        tags = pushed;
        d_step { read_index(tags, seen, mark, low, seen); seen = seen | own; tags = 0 };
#ifdef NEWEST_WATERMARK
        low = (watermark > low -> watermark : low);
#endif
        d_step {
            write_index(seen, mark, low);
            printf("%d: publisher %d writes: lists %d, watermark %d, marks %d %d %d\n", clock, me, listed, watermark, marks.at[0], marks.at[1], marks.at[2])
        };
        d_step { read_back(seen, mark, low, is_confirmed); forget(tags, low, seen, mark) };
        if
        :: is_confirmed -> break
        :: else
        fi
    :: else -> break
    od
}

/* Puts what is listed, and not taken in already, into one new segment, which names it. The bytes stay where they are: the
   new segment has them if one of those that it takes in is still there when it is pushed. */
inline merge(me) {
    begun[me] = clock;
    own = 0;
    tags = pushed;
    d_step {
        read_index(tags, seen, mark, low, seen);
        taken = seen & pushed;
        do
        :: s < SEGMENTS ->
#ifndef MERGE_CONDEMNED
            taken = (mark.at[s] != 0 -> taken & ~ONE(s) : taken);
#endif
            taken = ((HAS(seen, s) && mark.at[s] == 0) -> taken & ~merges[s] : taken);
            s++
        :: else -> break
        od;
        s = 0;
        forget(tags, low, seen, mark)
    };
    if
    :: taken != 0 && used < SEGMENTS ->
        atomic {
            used < SEGMENTS -> mine = used; used++; take_time(created[mine])
        };
        d_step {
            do
            :: s < SEGMENTS -> records[mine] = records[mine] | (HAS(taken, s) -> records[s] : 0); s++
            :: else -> break
            od;
            s = 0;
            lists = lists | ((taken & lists) -> ONE(mine) : 0);
            holds = holds | ((taken & holds & pushed) -> ONE(mine) : 0);
            pushed = pushed | ONE(mine);
            merges[mine] = taken;
            own = ONE(mine);
            taken = 0;
            printf("%d: publisher %d merges segments %d into %d of %d\n", clock, me, merges[mine], mine, created[mine])
        };
        list_segments(me, own)
    :: else
    fi;
    begun[me] = 0
}

/* Whether a segment that is not condemned lists the path. */
inline find_path(all, marked, is_there) {
    is_there = false;
    s = 0;
    do
    :: s < SEGMENTS ->
        is_there = (is_there || (HAS(all & lists, s) && marked.at[s] == 0));
        s++
    :: else -> break
    od;
    s = 0
}

inline take_time(time) {
    if
    :: time = clock
    :: SKEW > 0 -> time = clock + SKEW
    :: SKEW > 0 -> time = clock - SKEW
    fi
}

proctype publisher(byte me) {
    byte tags, low, seen, mine, own, tries, taken, s;
    Marks mark;
    bool is_found, is_again, is_confirmed;
    {
        clock >= FIRST + me * APART;
#if MERGES == 2
        merge(me);
        own = 0;
#endif
        begun[me] = clock;
        tags = pushed;
        d_step { read_index(tags, seen, mark, low, seen); find_path(seen, mark, is_found); forget(tags, low, seen, mark) };
send:   skip;
        atomic {
            used < SEGMENTS -> mine = used; used++; take_time(created[mine])
        };
        d_step {
            pushed = pushed | ONE(mine);
            records[mine] = ONE(me);
            own = own | ONE(mine);
            printf("%d: publisher %d pushes segment %d of %d, relying on another: %d\n", clock, me, mine, created[mine], is_found);
            if
            :: is_found
            :: else -> lists = lists | ONE(mine); holds = holds | ONE(mine)
            fi
        };
        list_segments(me, own);
        tags = pushed;
        d_step { read_index(tags, seen, mark, low, seen); find_path(seen, mark, is_found); forget(tags, low, seen, mark) };
        if
        :: is_found ->
            d_step { printf("%d: publisher %d ends well\n", clock, me); done = done | ONE(me); begun[me] = 0 };
#if MERGES == 1
            merge(me)
#endif
        :: !is_found && !is_again -> is_again = true; goto send
        :: !is_found && is_again -> begun[me] = 0       /* an error: nothing is promised */
        fi
    } unless { HAS(killed, me) }
}

/* Whether gc believes that the segment was taken in: the merged one is listed, is not condemned, and has all of it. */
inline find_taken(one, is_taken) {
    is_taken = false;
    m = 0;
    do
    :: m < SEGMENTS ->
        is_taken = (is_taken || (HAS(seen & known, m) && planned.at[m] == 0 && HAS(merges[m], one) &&
            (records[one] & ~records[m]) == 0 && (!HAS(lists, one) || HAS(lists, m))));
        m++
    :: else -> break
    od;
    m = 0
}

proctype collector(byte me) {
    byte started, last, tags, list, low, seen, known, s, m, runs, tries;
    Marks mark, planned;
    byte live, alive, dead, lift, expired, delete, replaced, new, needed, have;
    bool is_complete, is_confirmed, is_stopped, is_taken;
    do
    :: runs < (me == 0 -> RUNS : 1) && (clock > last || RUNS_AT_ONCE) && clock >= FIRST + 2 * APART ->
        runs++;
        last = 0;
        collecting[me] = (SLOW_GC -> 0 : clock);
        is_stopped = false;
        take_time(started);
        tags = pushed;
        printf("%d: gc %d lists the tags of segments %d\n", clock, me, pushed);
        d_step {
            read_index(tags, list, planned, low, seen);
            known = (tags | list) & pushed;
            /* Live is the path when anybody's record is there; records count for ever. */
            live = 0; alive = 0; dead = 0; lift = 0; expired = 0; delete = 0; replaced = 0; new = 0; have = 0;
            do
            :: s < SEGMENTS ->
                live = live | (HAS(known, s) -> records[s] : 0);
                is_stopped = (is_stopped || (HAS(seen & ~pushed, s) && planned.at[s] == 0));
                s++
            :: else -> break
            od;
            s = 0;
            do
            :: s < SEGMENTS ->
                if
                :: HAS(seen & known, s) && planned.at[s] == 0 ->
                    find_taken(s, is_taken);
                    if
#ifdef UNLIST_TAKEN
                    :: is_taken -> expired = expired | ONE(s); dead = dead | ONE(s)
#endif
                    :: is_taken || (records[s] == 0 && !(live && HAS(lists, s)) && created[s] <= started) -> dead = dead | ONE(s)
                    :: else -> alive = alive | ONE(s); have = have | records[s]
                    fi
                :: else
                fi;
                s++
            :: else -> break
            od;
            /* What is needed and in nothing that stays: first what readers see, the newest first. */
            is_confirmed = (lists & alive) != 0;
            s = 2 * SEGMENTS;
            do
            :: s > 0 ->
                s--;
                if
                :: HAS(known & ~(alive | dead), s % SEGMENTS) &&
                    ((s >= SEGMENTS) == (HAS(seen, s % SEGMENTS) != 0)) &&
                    ((live && !is_confirmed && HAS(lists, s % SEGMENTS)) || (records[s % SEGMENTS] & ~have)) ->
                    lift = lift | ONE(s % SEGMENTS);
                    have = have | records[s % SEGMENTS];
                    is_confirmed = (is_confirmed || HAS(lists, s % SEGMENTS))
                :: else
                fi
            :: else -> break
            od;
#ifdef NO_LIFT
            lift = 0;
#endif
            do
            :: s < SEGMENTS ->
                if
                :: HAS(list, s) && planned.at[s] != 0 && !HAS(lift, s) && IS_OLD(s, planned, started) -> expired = expired | ONE(s)
                :: HAS(known & ~seen, s) && !HAS(lift, s) && created[s] + MARGIN < started -> delete = delete | ONE(s)
                :: else
                fi;
                s++
            :: else -> break
            od;
            s = 0;
            is_confirmed = false;    /* there is always something else that it changes in the index */
            printf("%d: gc %d began at %d and plans: condemn %d lift %d unlist %d delete %d\n", clock, me, started, dead, lift, expired, delete);
            list = 0;
            known = 0;
            forget(tags, low, seen, mark)
        };
        if
        :: is_stopped -> goto ended
        :: !is_stopped
        fi;
#if REPLACES
        if
        :: used < SEGMENTS && alive != 0 ->
            atomic {
                do
                :: s < SEGMENTS - 1 -> s++
                :: HAS(alive, s) && created[s] <= started -> replaced = ONE(s); break
                :: s == SEGMENTS - 1 -> break
                od;
                if
                :: replaced -> new = used; used++; created[new] = clock
                :: else
                fi
            };
            d_step {
                if
                :: replaced ->
                    records[new] = records[s];
                    lists = lists | ((live && HAS(lists, s)) -> ONE(new) : 0);
                    holds = holds | ((live && HAS(holds, s)) -> ONE(new) : 0);
                    pushed = pushed | ONE(new);
                    new = ONE(new);
                    alive = alive & ~replaced
                :: else
                fi;
                s = 0
            }
        :: true
        fi;
#endif
        needed = alive | lift | new;
        tries = 0;
        do
        :: !is_confirmed && tries < TRIES ->
            tries++;
            tags = pushed;
            d_step {
                read_index(tags, list, mark, low, seen);
                is_complete = ((seen & ~list & ~pushed) == 0);
                seen = seen & (list | pushed);
                have = 0;       /* whether a segment of ours was condemned meanwhile */
                do
                :: s < SEGMENTS -> have = (have || (HAS(new & seen, s) && mark.at[s] != 0)); s++
                :: else -> break
                od;
                s = 0;
                is_stopped = ((needed & ~seen & ~pushed) != 0);
                do
                :: s < SEGMENTS ->
                    if
                    :: HAS(seen & expired, s) && is_complete && mark.at[s] == planned.at[s] && IS_OLD_AT_WRITE(s, mark) -> seen = seen & ~ONE(s)
                    :: else ->
                        if
                        :: HAS(lift, s) || !HAS(seen, s) -> mark.at[s] = 0
                        :: HAS(seen & (dead | (have -> 0 : replaced)), s) && mark.at[s] == 0 -> mark.at[s] = clock
                        :: else
                        fi
                    fi;
                    s++
                :: else -> break
                od;
                s = 0;
                seen = seen | needed;
                tags = 0;
                list = 0;
                writing = writing | ONE(me);
                low = ((is_complete && started > MARGIN && started - MARGIN > low) -> started - MARGIN : low)
            };
            if
            :: writing = writing & ~ONE(me); goto ended       /* killed, or stopped */
            :: !is_stopped
            fi;
            d_step {
                write_index(seen, mark, low);
                writing = writing & ~ONE(me);
                printf("%d: gc %d writes: lists %d, watermark %d, marks %d %d %d\n", clock, me, listed, watermark, marks.at[0], marks.at[1], marks.at[2])
            };
            d_step { read_back(seen, mark, low, is_confirmed); is_complete = false; forget(tags, low, seen, mark) }
        :: else -> break
        od;
        if
        :: is_confirmed && delete != 0 ->      /* unless it is killed */
            tags = pushed;
            d_step { read_index(tags, list, mark, low, seen) };
            d_step { pushed = pushed & ~(delete & ~seen); printf("%d: gc %d deletes %d\n", clock, me, delete & ~seen) }
        :: true
        fi;
ended:  skip;
        d_step {
            /* Nothing is remembered between runs. */
            tags = 0; list = 0; low = 0; seen = 0; known = 0; tries = 0; started = 0; live = 0; alive = 0; dead = 0;
            lift = 0; expired = 0; delete = 0; replaced = 0; new = 0; needed = 0; have = 0; s = 0; is_taken = false;
            is_complete = false; is_confirmed = false; is_stopped = false;
            last = clock;
            collecting[me] = 0;
            do
            :: s < SEGMENTS -> mark.at[s] = 0; planned.at[s] = 0; s++
            :: else -> break
            od;
            s = 0
        }
    :: else -> break
    od
}

/* Time goes on unless a publish has to end first, be it by being killed. */
proctype time() {
    byte s;
    do
    :: atomic {
        clock < END && (writing == 0 || SLOW_WRITES) ->
        do
        :: s < PUBLISHERS && (begun[s] == 0 || clock - begun[s] < LONGEST) -> s++
        :: s < PUBLISHERS && begun[s] != 0 && clock - begun[s] >= LONGEST ->
            if
            :: begun[s] = 0; killed = killed | ONE(s)
            fi;
            break
        :: s >= PUBLISHERS && s < PUBLISHERS + COLLECTORS &&
            (collecting[s - PUBLISHERS] == 0 || clock - collecting[s - PUBLISHERS] < LONGEST) -> s++
        :: s >= PUBLISHERS && s < PUBLISHERS + COLLECTORS &&
            collecting[s - PUBLISHERS] != 0 && clock - collecting[s - PUBLISHERS] >= LONGEST -> break
        :: s == PUBLISHERS + COLLECTORS -> clock++; break
        od;
        s = 0
       }
    od
}

/* What must hold in every state. */
#define IS_READ(s) (HAS(pushed, s) && (HAS(listed, s) || created[s] >= watermark))
#define IS_GOOD(s) (IS_READ(s) && marks.at[s] == 0)
#define TAKES_IN(m, s) (IS_GOOD(m) && HAS(merges[m], s))
/* What a good segment took in is not read. */
#define IS_LOOKED_AT(s) (IS_READ(s) && !IS_TAKEN(s))
#define SERVES(s) (HAS(holds, s) && IS_LOOKED_AT(s))
#define KEEPS(s) (IS_LOOKED_AT(s) -> records[s] : 0)
#define DANGLES(s) (marks.at[s] == 0 && (HAS(listed & ~pushed, s) || (IS_READ(s) && HAS(lists & ~holds, s))))
#if SEGMENTS == 3
#define OF_ALL(what, and) (what(0) and what(1) and what(2))
#define IS_TAKEN(s) (TAKES_IN(1, s) || TAKES_IN(2, s))
#elif SEGMENTS == 4
#define OF_ALL(what, and) (what(0) and what(1) and what(2) and what(3))
#define IS_TAKEN(s) (TAKES_IN(1, s) || TAKES_IN(2, s) || TAKES_IN(3, s))
#elif SEGMENTS == 5
#define OF_ALL(what, and) (what(0) and what(1) and what(2) and what(3) and what(4))
#define IS_TAKEN(s) (TAKES_IN(1, s) || TAKES_IN(2, s) || TAKES_IN(3, s) || TAKES_IN(4, s))
#else
#define OF_ALL(what, and) (what(0) and what(1) and what(2) and what(3) and what(4) and what(5))
#define IS_TAKEN(s) (TAKES_IN(1, s) || TAKES_IN(2, s) || TAKES_IN(3, s) || TAKES_IN(4, s) || TAKES_IN(5, s))
#endif

proctype watch() {
    do
    :: done && !OF_ALL(SERVES, ||) -> assert(false)         /* a path is lost that a finished publisher relies on */
    :: (done & ~OF_ALL(KEEPS, |)) != 0 -> assert(false)     /* a finished publisher's segment is lost */
    :: !SLOW_GC && OF_ALL(DANGLES, ||) -> assert(false)                 /* listed as good, and not there */
    od
}

init {
    atomic {
        byte s = 0;
        do
        :: s < PUBLISHERS -> run publisher(s); s++
        :: else -> break
        od;
        s = 0;
        do
        :: s < COLLECTORS -> run collector(s); s++
        :: else -> break
        od;
        s = 0;
        run time();
        run watch()
    }
}
